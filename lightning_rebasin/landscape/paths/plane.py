"""The plane through three sets of weights, with orthonormal axes.

The first axis points from the first model to the second, the second axis is orthogonal to it and points towards the
third (Gram–Schmidt).  Coordinates are Euclidean distances over all floating-point weights, so a contour picture shows
angles and lengths as they are.

Source: Garipov et al., "Loss Surfaces, Mode Connectivity, and Fast Ensembling of DNNs", NeurIPS 2018, figure 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import final

from lightning_rebasin.errors import ConfigurationError
from lightning_rebasin.landscape.points import Point, State


@final
@dataclass(frozen=True, eq=False)
class Plane:
    """All combinations of three models, by Euclidean coordinates with the first model at the origin.

    Args:
        models: Three sets of weights that do not lie on one line.

    Raises:
        ConfigurationError: They do, or there are not three.

    Example:
        >>> import torch
        >>> a, b, c = (torch.tensor(v) for v in ([0.0, 0.0], [3.0, 0.0], [1.0, 2.0]))
        >>> plane = Plane(({"w": a}, {"w": b}, {"w": c}))
        >>> plane.coordinates
        ((0.0, 0.0), (3.0, 0.0), (1.0, 2.0))
        >>> plane.at(2.0, 1.0).state()["w"].tolist()
        [2.0, 1.0]
    """

    models: tuple[State, ...]

    def __post_init__(self) -> None:
        if len(self.models) != 3:
            raise ConfigurationError(
                f"a plane needs three models, got {len(self.models)}"
            )
        height = self.coordinates[2][1]
        scale = max(self.coordinates[1][0], height)
        if not height > 1e-9 * scale:
            raise ConfigurationError(
                "the three models of a plane lie on one line"
            )

    @cached_property
    def coordinates(self) -> tuple[tuple[float, float], ...]:
        """Where the three models lie."""
        first, second, third = self.models
        squares = {"uu": 0.0, "uv": 0.0, "vv": 0.0}
        for name, origin in first.items():
            if not origin.is_floating_point():
                continue
            u = (second[name].double() - origin.double()).flatten()
            v = (third[name].double() - origin.double()).flatten()
            for pair, product in (("uu", u @ u), ("uv", u @ v), ("vv", v @ v)):
                squares[pair] += float(product)
        width = math.sqrt(squares["uu"])
        if not width:
            raise ConfigurationError(
                "the first two models of a plane are the same"
            )
        along = squares["uv"] / width
        # Rounding may leave a model on the line a little below it.
        height = math.sqrt(max(squares["vv"] - along**2, 0.0))
        return (0.0, 0.0), (width, 0.0), (along, height)

    def at(self, x: float, y: float) -> Point:
        """The point with these coordinates."""
        _, (width, _), (along, height) = self.coordinates
        third = y / height
        second = (x - third * along) / width
        return Point(self.models, (1.0 - second - third, second, third))
