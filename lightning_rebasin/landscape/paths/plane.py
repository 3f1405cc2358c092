"""The plane through three sets of weights, with orthonormal axes.

The first axis points from the first model to the second, the second axis is orthogonal to it and points towards the
third (Gram–Schmidt).  Coordinates are Euclidean distances over all floating-point weights, so a contour picture shows
angles and lengths as they are.

Source: Garipov et al., "Loss Surfaces, Mode Connectivity, and Fast Ensembling of DNNs", NeurIPS 2018, figure 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import final

from torch import Tensor

from lightning_rebasin.errors import ConfigurationError
from lightning_rebasin.landscape.points import Point, State

#: Lower triangles than this count as a line: a point between two float32 models is rounded by 6e-8.
_FLAT = 1e-6


@final
@dataclass(frozen=True, eq=False)
class Plane:
    """All combinations of three models, by Euclidean coordinates with the first model at the origin.

    Args:
        models: Three sets of weights that do not lie on one line.
        names: Which tensors count for lengths and angles; all floating-point ones if omitted.

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
    names: frozenset[str] | None = None

    def __post_init__(self) -> None:
        if len(self.models) != 3:
            raise ConfigurationError(
                f"a plane needs three models, got {len(self.models)}"
            )
        (_, _), (width, _), (along, height) = self.coordinates
        longest = max(width, abs(along), height)
        if not height > _FLAT * longest:
            raise ConfigurationError(
                "the three models of a plane lie on one line"
            )

    @cached_property
    def coordinates(self) -> tuple[tuple[float, float], ...]:
        """Where the three models lie."""
        _, second, third = self.models
        uu = uv = 0.0
        for u, v in self._differences(second, third):
            uu += float(u @ u)
            uv += float(u @ v)
        if not uu:
            raise ConfigurationError(
                "the first two models of a plane are the same"
            )
        share = uv / uu
        # The height is measured on what is left of v, since vv − uv²/uu would leave only the rounding errors of two
        # large numbers where the models nearly lie on one line.
        squared_height = 0.0
        for u, v in self._differences(second, third):
            rest = v - share * u
            squared_height += float(rest @ rest)
        width = math.sqrt(uu)
        return (
            (0.0, 0.0),
            (width, 0.0),
            (share * width, math.sqrt(squared_height)),
        )

    def at(self, x: float, y: float) -> Point:
        """The point with these coordinates."""
        _, (width, _), (along, height) = self.coordinates
        third = y / height
        second = (x - third * along) / width
        return Point(self.models, (1.0 - second - third, second, third))

    def project(self, state: State) -> tuple[float, float, float]:
        """Coordinates of the point of the plane that is nearest to a set of weights, and the distance to it.

        With ``e₁ = u/‖u‖`` and ``e₂ = (v − (v·e₁)e₁)/‖…‖`` the coordinates of w are ``(w − a)·e₁`` and ``(w − a)·e₂``.

        Args:
            state: Weights with the names and shapes of the models.

        Returns:
            ``(x, y, distance)``; the distance is 0 on the plane, up to rounding.
        """
        _, (width, _), (along, height) = self.coordinates
        wu = wv = ww = 0.0
        edges = zip(
            self._differences(state, self.models[1]),
            self._differences(state, self.models[2]),
            strict=True,
        )
        for (w, u), (_, v) in edges:
            wu += float(w @ u)
            wv += float(w @ v)
            ww += float(w @ w)
        x = wu / width
        y = (wv - along / width * wu) / height
        return x, y, math.sqrt(max(ww - x * x - y * y, 0.0))

    def _differences(
        self, second: State, third: State
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Two edges from the first model, tensor by tensor: a float64 copy of three large models would not fit."""
        for name, tensor in self.models[0].items():
            counts = self.names is None or name in self.names
            if tensor.is_floating_point() and counts:
                start = tensor.double().flatten()
                u = second[name].to(start).flatten() - start
                v = third[name].to(start).flatten() - start
                yield u, v
