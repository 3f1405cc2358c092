"""Signs of units: the kind ``"sign"``, an odd function's symmetry.

``tanh(−x) = −tanh(x)``: the sign of a hidden unit may be flipped if everything that writes it and everything that reads
it flips.  An element is one ±1 for each unit.  A sign is its own inverse and its own contragredient, so readers and
writers are treated alike; where a unit enters squared (an even power) nothing changes.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from lightning_rebasin.errors import TransformError
from lightning_rebasin.symmetry.actions.action import Action, register_action
from lightning_rebasin.symmetry.actions.arithmetic import are_real_numbers
from lightning_rebasin.symmetry.spec.values import Group


@final
class SignAction(Action):
    """Float64 tensors of ±1 in the group's ``shape``."""

    kind = "sign"
    cost = "diagonal"
    exact = True

    def identity(self, group: Group) -> Tensor:
        """All signs +1."""
        return torch.ones(group.shape, dtype=torch.float64)

    def random(self, group: Group, generator: torch.Generator) -> Tensor:
        """Fair coins, thrown again for one of them if none would flip anything."""
        coins = torch.randint(2, group.shape, generator=generator)
        signs = coins.double() * 2 - 1
        if bool((signs > 0).all()):
            # The gate would take the identity for a proof.
            flipped = int(
                torch.randint(signs.numel(), (), generator=generator)
            )
            signs.view(-1)[flipped] = -1
        return signs

    def far(self, group: Group) -> Tensor:
        """All signs −1."""
        return -self.identity(group)

    def check(self, group: Group, element: Tensor) -> Tensor:
        """A float64 copy on the CPU.

        Raises:
            TransformError: Not ±1 in the group's shape.
        """
        fits = are_real_numbers(element, group.shape)
        if not fits or not bool((element.abs() == 1).all()):
            raise TransformError(
                f"group {group.id!r}: signs must be ±1 in the shape {group.shape}"
            )
        return element.detach().cpu().double().clone()

    def compose(self, group: Group, after: Tensor, before: Tensor) -> Tensor:
        """The product."""
        return after * before

    def inverse(self, group: Group, element: Tensor) -> Tensor:
        """The sign itself."""
        return element

    def apply(
        self, group: Group, element: Tensor, units: Tensor, power: int
    ) -> Tensor:
        """Units times their signs; an even power leaves them."""
        if power % 2 == 0:
            return units
        signs = element.reshape(group.instances, group.size, 1)
        return units * signs.to(units)

    def distance(self, group: Group, element: Tensor) -> float:
        """Fraction of the units that are flipped."""
        return float((element < 0).double().mean())


SIGN = register_action(SignAction())
