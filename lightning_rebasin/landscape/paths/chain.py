"""A chain of curves, one after the other: a path through more than two models.

Every piece takes the same share of t, so the joints, which are models that stay as they are, lie at multiples of 1/n.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

from lightning_rebasin.errors import ConfigurationError
from lightning_rebasin.landscape.paths.bezier import Bezier
from lightning_rebasin.landscape.paths.line import Line
from lightning_rebasin.landscape.paths.polygon import Polygon
from lightning_rebasin.landscape.points import Point


@final
@dataclass(frozen=True, eq=False)
class Chain:
    """Piece number ``⌊n·t⌋`` at ``n·t − ⌊n·t⌋``, for n pieces.

    Args:
        pieces: Paths, each of which begins where the one before ends.

    Raises:
        ConfigurationError: There is none.

    Example:
        >>> import torch
        >>> a, b, c = ({"w": torch.full((1,), float(i))} for i in range(3))
        >>> chain = Chain((Line(a, b), Line(b, c)))
        >>> chain.at(0.75).state()["w"].tolist()
        [1.5]
    """

    pieces: tuple[Bezier | Line | Polygon, ...]

    def __post_init__(self) -> None:
        if not self.pieces:
            raise ConfigurationError("a chain needs one piece or more")

    def at(self, t: float) -> Point:
        """The point at t in [0, 1]."""
        count = len(self.pieces)
        # The last piece holds its own end.
        number = min(max(math.floor(t * count), 0), count - 1)
        return self.pieces[number].at(t * count - number)
