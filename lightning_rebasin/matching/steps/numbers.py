"""The steps of kinds whose elements are one number for each unit: signs and scales."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from lightning_rebasin.assignment.solve import Solver
from lightning_rebasin.matching.steps.step import Step, register_step


@final
class SignStep(Step):
    """The sign of ``⟨A_i, B_i⟩``."""

    kind = "sign"

    def best(self, costs: Tensor, solver: Solver) -> tuple[Tensor, Tensor]:
        """Unit by unit; where nothing decides, the sign stays."""
        del solver
        signs = torch.where(costs < 0, -1.0, 1.0).double()
        return signs, costs.abs().sum(-1)


@final
class ScaleStep(Step):
    """No scale: in canonical gauge what a unit writes and what reads it are equally long already.

    A scale would only trade one product for another; the balanced ends are what is compared.
    """

    kind = "scale"

    def best(self, costs: Tensor, solver: Solver) -> tuple[Tensor, Tensor]:
        """All scales 1."""
        del solver
        return torch.ones_like(costs), costs.sum(-1)


SIGN = register_step(SignStep())
SCALE = register_step(ScaleStep())
