"""Elements of all groups as parameters: what a MergeModule learns beyond permutations, and together with them.

A rotation is the Cayley transform of a skew matrix, an invertible map the exponential of a matrix, a scale the
exponential of a number.  Each starts at 0, that is at the identity: the source has been aligned by matching before, and
what is learned is composed with that.  So the first step is exactly the start, every step is a symmetry of the source,
and the gradient of the loss at the midpoint moves all groups together; permutations follow straight through
(:mod:`lightning_rebasin.modules.orders`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor, nn

from lightning_rebasin.modules.orders import LearnedOrders
from lightning_rebasin.symmetry.actions.action import action_of
from lightning_rebasin.symmetry.actions.transform import Transform, act
from lightning_rebasin.symmetry.spec.spec import PermutationSpec


@final
class LearnedElements(nn.Module):
    """One latent tensor for every group that can be learned by gradient descent, and pulls for the permutations.

    Args:
        spec: The groups.
        start: Where learning starts; signs keep its elements.
        reference: The reference: every tensor.
        started: The source under the start: every tensor.
        parameters: Names of the tensors that the loss depends on.
    """

    def __init__(
        self,
        spec: PermutationSpec,
        start: Transform,
        reference: Mapping[str, Tensor],
        started: Mapping[str, Tensor],
        parameters: tuple[str, ...],
    ) -> None:
        super().__init__()
        self.spec = spec
        self.start = start
        self._names: list[str] = []
        latents = []
        for group in spec.groups.values():
            latent = action_of(group).latent(group)
            if latent is not None and not action_of(group).trivial(group):
                self._names.append(group.id)
                latents.append(nn.Parameter(latent.float()))
        self.latents = nn.ParameterList(latents)
        self.orders = LearnedOrders(spec, reference, started, parameters)

    def elements(self) -> dict[str, Tensor]:
        """The learned element of each continuous group, differentiable, beyond the start."""
        found = {}
        for name, latent in zip(self._names, self.latents, strict=True):
            group = self.spec.groups[name]
            found[name] = action_of(group).from_latent(group, latent)
        return found

    def moved(self, started: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The source under the current continuous elements, not yet permuted; differentiable.

        Args:
            started: The source under the start.
        """
        elements = self.elements()
        found: dict[str, Tensor] = {}
        for name, tensor in started.items():
            origin = self.spec.aliases.get(name, name)
            axis_map = self.spec.maps.get(origin)
            if origin in found and origin != name:
                found[name] = found[origin]
            elif axis_map is None:
                found[name] = tensor
            else:
                found[name] = act(self.spec, elements, tensor, axis_map)
        return found

    def transform(self) -> Transform:
        """The current transform as a value, in float64: start, then the learned elements, then the permutation."""
        wide = {}
        with torch.no_grad():
            for name, latent in zip(self._names, self.latents, strict=True):
                group = self.spec.groups[name]
                wide[name] = action_of(group).from_latent(
                    group, latent.detach().cpu().double()
                )
        orders = Transform.of(self.spec, self.orders.permutation.elements)
        learned = Transform.of(self.spec, wide)
        return orders.compose(learned).compose(self.start)
