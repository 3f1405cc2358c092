"""Bézier curves: smooth paths whose bends pull without being touched.

Source: Garipov et al., "Loss Surfaces, Mode Connectivity, and Fast Ensembling of DNNs", NeurIPS 2018, section 3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

from lightning_rebasin.errors import ConfigurationError
from lightning_rebasin.landscape.points import Point, State


@final
@dataclass(frozen=True, eq=False)
class Bezier:
    """``Σ_k C(n, k) (1 − t)^(n − k) t^k · θ_k``, from the first anchor at t = 0 to the last at t = 1.

    Args:
        anchors: An end, any number of bends, the other end.

    Raises:
        ConfigurationError: There are fewer than two.

    Example:
        >>> import torch
        >>> ends = {"w": torch.zeros(1)}, {"w": torch.ones(1)}
        >>> Bezier((ends[0], {"w": torch.full((1,), 5.0)}, ends[1])).at(0.5).coefficients
        (0.25, 0.5, 0.25)
    """

    anchors: tuple[State, ...]

    def __post_init__(self) -> None:
        if len(self.anchors) < 2:
            raise ConfigurationError(
                f"a Bézier curve needs two anchors or more, got {len(self.anchors)}"
            )

    def at(self, t: float) -> Point:
        """The point at t in [0, 1]: coefficients are the Bernstein polynomials."""
        degree = len(self.anchors) - 1
        coefficients = []
        for k in range(degree + 1):
            # 0.0 ** 0 is 1, so the ends come out exact.
            weight = (1.0 - t) ** (degree - k) * t**k
            coefficients.append(math.comb(degree, k) * weight)
        return Point(self.anchors, tuple(coefficients))
