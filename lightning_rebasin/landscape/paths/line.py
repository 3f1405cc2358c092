"""The line through two sets of weights: what a loss barrier is measured on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from lightning_rebasin.landscape.points import Point, State


@final
@dataclass(frozen=True, eq=False)
class Line:
    """``(1 − λ)·a + λ·b``.

    Args:
        a: Weights at λ = 0.
        b: Weights at λ = 1.

    Example:
        >>> import torch
        >>> Line({"w": torch.zeros(1)}, {"w": torch.ones(1)}).at(0.25).coefficients
        (0.75, 0.25)
    """

    a: State
    b: State

    def at(self, lam: float) -> Point:
        """The point at λ; values outside [0, 1] extrapolate."""
        return Point((self.a, self.b), (1.0 - lam, lam))
