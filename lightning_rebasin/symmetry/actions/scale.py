"""Positive scales of units: the kind ``"scale"``, the symmetry of positively homogeneous functions.

``relu(c·x) = c·relu(x)`` for c > 0: what writes a hidden unit may be multiplied by c if what reads it is divided by c.
An element is one positive number for each unit; the power of a component says how often it is multiplied (−1 for a
reader of ReLU units, −2 for a reader of squared ReLU units).
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from lightning_rebasin.errors import TransformError
from lightning_rebasin.symmetry.actions.action import Action, register_action
from lightning_rebasin.symmetry.actions.arithmetic import (
    are_real_numbers,
    length_balance,
    wide,
    with_precision_of,
)
from lightning_rebasin.symmetry.spec.values import Group

#: Elements beyond these scales would drown one side of a unit in rounding.
LARGEST = 1e8
#: Random elements lie between 1/e² and e².
_SPREAD = 2.0


@final
class ScaleAction(Action):
    """Positive float64 tensors in the group's ``shape``."""

    kind = "scale"
    stretches = True
    keeps_lengths = True
    cost = "diagonal"

    def identity(self, group: Group) -> Tensor:
        """All scales 1."""
        return torch.ones(group.shape, dtype=torch.float64)

    def random(self, group: Group, generator: torch.Generator) -> Tensor:
        """Scales whose logarithms are uniform in [−2, 2]."""
        uniform = torch.rand(
            group.shape, generator=generator, dtype=torch.float64
        )
        return torch.exp(_SPREAD * (2 * uniform - 1))

    def far(self, group: Group) -> Tensor:
        """All scales 3."""
        return 3 * self.identity(group)

    def check(self, group: Group, element: Tensor) -> Tensor:
        """A float64 copy on the CPU.

        Raises:
            TransformError: Not positive numbers of moderate size in the group's shape.
        """
        fits = are_real_numbers(element, group.shape)
        if not fits or not _moderate(element):
            raise TransformError(
                f"group {group.id!r}: scales must be positive, between {1 / LARGEST:g} and {LARGEST:g}, in the shape "
                f"{group.shape}"
            )
        return element.detach().cpu().double().clone()

    def compose(self, group: Group, after: Tensor, before: Tensor) -> Tensor:
        """The product."""
        return after * before

    def inverse(self, group: Group, element: Tensor) -> Tensor:
        """One over the scales."""
        return 1 / element

    def apply(
        self, group: Group, element: Tensor, units: Tensor, power: int
    ) -> Tensor:
        """Units times ``element ** power``."""
        scales = element.reshape(group.instances, group.size, 1)
        factor = scales.to(units.device) ** power
        return with_precision_of(units, wide(units, factor) * factor)

    def latent(self, group: Group) -> Tensor:
        """Logarithms of the scales, 0 for the identity."""
        return torch.zeros(group.shape)

    def from_latent(self, group: Group, latent: Tensor) -> Tensor:
        """``exp`` of the latent, kept within two orders of magnitude."""
        return torch.exp(4.6 * torch.tanh(latent / 4.6))

    def balance(self, group: Group, plus: Tensor, minus: Tensor) -> Tensor:
        """``(H_ii / G_ii)^¼``."""
        g, h = (gram.diagonal(dim1=-2, dim2=-1) for gram in (plus, minus))
        return length_balance(g, h).reshape(group.shape)

    def distance(self, group: Group, element: Tensor) -> float:
        """Mean of ``|tanh(log c)|``."""
        return float(element.log().abs().tanh().mean())


def _moderate(element: Tensor) -> bool:
    inside = (element >= 1 / LARGEST) & (element <= LARGEST)
    return bool(inside.all())


SCALE = register_action(ScaleAction())
