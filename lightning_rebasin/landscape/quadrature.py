"""Integrals along a chord: Gauss–Lobatto rules on equal pieces of [0, 1].

For a function φ on [0, 1] and a place α, integration by parts gives how far φ lies above its chord, in two ways:

    φ(α) − [(1 − α)·φ(0) + α·φ(1)]  =  −∫ G(α, s)·φ″(s) ds,        G(α, s) = min(α, s)·(1 − max(α, s)),
                                    =  (1 − α)·∫_0^α φ′(s) ds − α·∫_α^1 φ′(s) ds.

The first needs φ′ to be continuous, the second only φ.  G has a kink at s = α, and so has the second integrand: a rule
that is to be exact for polynomials must have α between two pieces.  Lobatto rules take both ends of every piece, which
are wanted anyway: the ends of the chord, and the midpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.polynomial.legendre import Legendre

from lightning_rebasin.errors import ConfigurationError


@dataclass(frozen=True)
class ChordGrid:
    """Where a function on [0, 1] is evaluated, and its integrals.

    Args:
        pieces: Number of equal pieces; even, so that ½ lies between two of them.
        nodes: Places in each piece, both its ends included; exact for polynomials up to degree ``2·nodes − 3``.

    Raises:
        ConfigurationError: An odd number of pieces, or fewer than two nodes.

    Example:
        >>> grid = ChordGrid(2, 3)
        >>> grid.at
        (0.0, 0.25, 0.5, 0.75, 1.0)
        >>> [round(x, 6) for x in grid.integrals([s**2 for s in grid.at])]
        [0.041667, 0.291667]
    """

    pieces: int = 4
    nodes: int = 4

    def __post_init__(self) -> None:
        if self.pieces < 2 or self.pieces % 2 or self.nodes < 2:
            raise ConfigurationError(
                f"pieces={self.pieces}, nodes={self.nodes}: an even number of pieces and two nodes or more are needed"
            )

    @cached_property
    def at(self) -> tuple[float, ...]:
        """The places, ascending; neighbouring pieces share one."""
        inner, _ = self._rule
        found = [0.0]
        for piece in range(self.pieces):
            found += [(piece + x) / self.pieces for x in inner[1:-1]]
            # Exact: 1 is the second end of the chord, and ½ its middle.
            found.append((piece + 1) / self.pieces)
        return tuple(found)

    @property
    def borders(self) -> tuple[float, ...]:
        """The ends of the pieces: where :meth:`from_curvatures` and :meth:`from_slopes` can be asked."""
        return tuple(k / self.pieces for k in range(self.pieces + 1))

    def integrals(self, values: Sequence[float]) -> tuple[float, ...]:
        """The integral over each piece.

        Args:
            values: The function at each place of :attr:`at`.
        """
        _, weights = self._rule
        found = []
        for piece in range(self.pieces):
            start = piece * (self.nodes - 1)
            own = values[start : start + self.nodes]
            total = sum(w * v for w, v in zip(weights, own, strict=True))
            found.append(float(total) / self.pieces)
        return tuple(found)

    def from_curvatures(self, values: Sequence[float], alpha: float) -> float:
        """``−∫ G(α, s)·φ″(s) ds``.

        Args:
            values: φ″ at each place.
            alpha: One of :attr:`borders`.

        Example:
            >>> grid = ChordGrid(2, 3)
            >>> grid.from_curvatures([-2.0] * 5, 0.5)
            0.25
        """
        weighted = []
        for s, value in zip(self.at, values, strict=True):
            weighted.append(green(alpha, s) * value)
        return -sum(self.integrals(weighted))

    def from_slopes(self, values: Sequence[float], alpha: float) -> float:
        """``(1 − α)·∫_0^α φ′(s) ds − α·∫_α^1 φ′(s) ds``.

        Args:
            values: φ′ at each place.
            alpha: One of :attr:`borders`.
        """
        pieces = self.integrals(values)
        before = round(alpha * self.pieces)
        left, right = sum(pieces[:before]), sum(pieces[before:])
        return (1.0 - alpha) * left - alpha * right

    @cached_property
    def _rule(self) -> tuple[list[float], list[float]]:
        """Places and weights on [0, 1]: −1, 1 and the zeros of P′ₙ₋₁, brought from [−1, 1]."""
        legendre = Legendre.basis(self.nodes - 1)
        zeros = np.sort(legendre.deriv().roots().real)
        places = np.concatenate(([-1.0], zeros, [1.0]))
        count = self.nodes * (self.nodes - 1)
        weights = 2.0 / (count * legendre(places) ** 2)
        return ((places + 1.0) / 2.0).tolist(), (weights / 2.0).tolist()


def green(alpha: float, s: float) -> float:
    """Green's function ``min(α, s)·(1 − max(α, s))`` of −d²/ds² on [0, 1].

    Example:
        >>> green(0.5, 0.25), green(0.5, 0.5)
        (0.125, 0.25)
    """
    return min(alpha, s) * (1.0 - max(alpha, s))
