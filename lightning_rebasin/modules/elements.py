"""Elements of continuous groups as parameters: what a MergeModule learns beyond permutations.

A rotation is the Cayley transform of a skew matrix, an invertible map the exponential of a matrix, a scale the
exponential of a number.  Each starts at 0, that is at the identity: the source has been aligned by matching before, and
what is learned is composed with that.  So the first step is exactly the start, every step is a symmetry of the source,
and the gradient of the loss at the midpoint moves all groups together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from lightning_rebasin.landscape.copies import isolated_rng
from lightning_rebasin.modules.endpoints import Endpoints
from lightning_rebasin.modules.inner import InnerModel
from lightning_rebasin.symmetry.actions.action import action_of
from lightning_rebasin.symmetry.actions.transform import Transform, act
from lightning_rebasin.symmetry.spec.spec import PermutationSpec


@final
class LearnedElements(nn.Module):
    """One latent tensor for every group that can be learned by gradient descent.

    Args:
        spec: The groups.
        start: Where learning starts; permutations and signs keep its elements.
    """

    def __init__(self, spec: PermutationSpec, start: Transform) -> None:
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

    def elements(self) -> dict[str, Tensor]:
        """The learned element of each group, differentiable, beyond the start."""
        found = {}
        for name, latent in zip(self._names, self.latents, strict=True):
            group = self.spec.groups[name]
            found[name] = action_of(group).from_latent(group, latent)
        return found

    def aligned(self, started: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The source under the current transform, differentiable.

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
        """The current transform as a value, in float64: what was learned after the start."""
        with torch.no_grad():
            wide = {}
            for name, latent in zip(self._names, self.latents, strict=True):
                group = self.spec.groups[name]
                wide[name] = action_of(group).from_latent(
                    group, latent.detach().cpu().double()
                )
        return Transform.of(self.spec, wide).compose(self.start)


def best_start(
    inner: InnerModel,
    ends: Endpoints,
    starts: Sequence[Transform],
    batches: Sequence[Any],
) -> Transform:
    """The start whose midpoint has the lowest loss; the first one without batches.

    Args:
        inner: Computes the loss, on the CPU.
        ends: Both ends.
        starts: Where learning may start.
        batches: A few training batches on the CPU.
    """
    if len(starts) < 2 or not batches:
        return starts[0]
    losses = []
    with torch.no_grad():
        for start in starts:
            weights = ends.callable_weights(ends.midpoint(start, 0.5))
            total = 0.0
            for number, batch in enumerate(batches):
                with isolated_rng():
                    total += float(inner.loss_at(weights, batch, number))
            losses.append(total)
    # A loss that is not a number is no argument for a start.
    known = [float("inf") if math.isnan(loss) else loss for loss in losses]
    return starts[known.index(min(known))]
