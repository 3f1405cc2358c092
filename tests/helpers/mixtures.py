"""Modules of a user's own that declare their symmetries, rightly and wrongly."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_rebasin import PermutationSpec, declare, on
from lightning_rebasin.symmetry import Group


class Bumps(nn.Module):
    """``f(x) = Σ_k h_k · exp(−(d_kᵀx)²)``: components change places, and the sign of each direction is free."""

    def __init__(self, count: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.direction = nn.Parameter(torch.randn(count, inputs))
        self.height = nn.Parameter(torch.randn(outputs, count))

    def forward(self, x: Tensor) -> Tensor:
        bumps = torch.exp(-((x @ self.direction.T) ** 2))
        return bumps @ self.height.T

    def symmetry_spec(self) -> PermutationSpec:
        component = Group("component", len(self.direction))
        sign = Group("sign", 1, component, "sign")
        return declare(
            self,
            {"direction": [on(sign, 0)], "height": [on(component, 1)]},
        )


class WrongSign(Bumps):
    """Claims that heights are free of their sign, too."""

    def symmetry_spec(self) -> PermutationSpec:
        component = Group("component", len(self.direction))
        sign = Group("sign", 1, component, "sign")
        return declare(
            self, {"direction": [on(component, 0)], "height": [on(sign, 1)]}
        )


class WrongOrder(Bumps):
    """Claims that the first direction belongs to the last height, and so on."""

    def symmetry_spec(self) -> PermutationSpec:
        count = len(self.direction)
        component = Group("component", count)
        backwards = torch.arange(count).flip(0)[:, None]
        return declare(
            self,
            {
                "direction": [on(component, 0)],
                "height": [on(component, 1, positions=backwards)],
            },
        )


class Incomplete(Bumps):
    """Forgets the heights."""

    def symmetry_spec(self) -> PermutationSpec:
        component = Group("component", len(self.direction))
        sign = Group("sign", 1, component, "sign")
        return declare(self, {"direction": [on(sign, 0)]})
