"""A kind that the package does not know: signs of units, alone or inside a permutation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from lightning_rebasin.assignment.solve import Solver
from lightning_rebasin.errors import TransformError
from lightning_rebasin.matching.steps.step import Step, registered_step
from lightning_rebasin.symmetry import Group
from lightning_rebasin.symmetry.actions.action import Action, registered_action


class SignAction(Action):
    kind = "flip"
    cost = "diagonal"
    exact = True

    def identity(self, group: Group) -> Tensor:
        return torch.ones(group.shape)

    def random(self, group: Group, generator: torch.Generator) -> Tensor:
        return torch.randint(2, group.shape, generator=generator) * 2.0 - 1.0

    def far(self, group: Group) -> Tensor:
        return -torch.ones(group.shape)

    def check(self, group: Group, element: Tensor) -> Tensor:
        fits = element.shape == group.shape
        if not fits or not bool((element.abs() == 1).all()):
            raise TransformError(
                f"group {group.id!r}: signs must be ±1 in the shape {group.shape}"
            )
        return element.detach().cpu().float()

    def compose(self, group: Group, after: Tensor, before: Tensor) -> Tensor:
        return after * before

    def inverse(self, group: Group, element: Tensor) -> Tensor:
        return element

    def apply(
        self, group: Group, element: Tensor, units: Tensor, power: int
    ) -> Tensor:
        signs = element.reshape(group.instances, group.size, 1)
        return units * signs.to(units)

    def distance(self, group: Group, element: Tensor) -> float:
        return float((element < 0).double().mean())


class SignStep(Step):
    kind = "flip"

    def best(self, costs: Tensor, solver: Solver) -> tuple[Tensor, Tensor]:
        return torch.where(costs < 0, -1.0, 1.0), costs.abs().sum(-1)


@contextmanager
def known_signs() -> Iterator[None]:
    """The package knows signs inside a ``with`` block."""
    with registered_action(SignAction()), registered_step(SignStep()):
        yield
