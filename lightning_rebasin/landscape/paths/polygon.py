"""Polygonal chains: straight pieces of equal length in t, from anchor to anchor.

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
class Polygon:
    """The chain through all anchors; t in [0, 1] passes each of the n pieces in 1/n.

    Args:
        anchors: Two or more sets of weights, in order.

    Raises:
        ConfigurationError: There are fewer than two.

    Example:
        >>> import torch
        >>> a, b, c = ({"w": torch.full((1,), float(i))} for i in range(3))
        >>> Polygon((a, b, c)).at(0.5).coefficients, Polygon((a, b, c)).at(0.75).coefficients
        ((0.0, 1.0, 0.0), (0.0, 0.5, 0.5))
    """

    anchors: tuple[State, ...]

    def __post_init__(self) -> None:
        if len(self.anchors) < 2:
            raise ConfigurationError(
                f"a polygonal chain needs two anchors or more, got {len(self.anchors)}"
            )

    def at(self, t: float) -> Point:
        """The point at t in [0, 1]."""
        pieces = len(self.anchors) - 1
        # The last piece holds its own end.
        number = min(max(math.floor(t * pieces), 0), pieces - 1)
        share = t * pieces - number
        coefficients = [0.0] * len(self.anchors)
        coefficients[number] = 1.0 - share
        coefficients[number + 1] = share
        return Point(self.anchors, tuple(coefficients))
