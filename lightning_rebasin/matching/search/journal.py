"""Where a matching stands between two visits, so that another process can go on from there.

Matching two networks of a billion numbers takes minutes to hours, and processes are killed.  A :class:`Standing` holds
what the descents know beside the weights: orders, prices, what was gained and what need not be looked at again.  It is
a few megabytes where the weights are gigabytes; the cost matrices are not kept, since they can be built again.

A descent that goes on visits the same families in the same order as one that was never stopped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Ended:
    """The end of one descent.

    Args:
        flats: The flat order of each group.
        gains: What each sweep gained.
        seconds: How long it took.
    """

    flats: Mapping[str, Tensor]
    gains: tuple[float, ...]
    seconds: float

    @property
    def converged(self) -> bool:
        """Whether a sweep without gain was reached."""
        return not self.gains[-1]


@dataclass(frozen=True, eq=False)
class Standing:
    """Where the descents of one matching stand.

    Args:
        ended: The descents that are over; the next one is running.
        flats: The flat order of each group in the running descent; empty if it has yet to begin.
        duals: Prices and columns of each group's last assignment.
        settled: Families that a visit would leave as they are.
        gains: What each whole sweep of the running descent gained.
        visited: Families visited in the running sweep.
        gain: What they gained.
        generator: State of the generator before it drew the order of the running sweep.
        seconds: How long the running descent took so far.
    """

    ended: tuple[Ended, ...]
    generator: Tensor
    flats: Mapping[str, Tensor] = field(default_factory=dict)
    duals: Mapping[str, tuple[NDArray[np.float64], NDArray[np.int64]]] = field(
        default_factory=dict
    )
    settled: tuple[str, ...] = ()
    gains: tuple[float, ...] = ()
    visited: int = 0
    gain: float = 0.0
    seconds: float = 0.0


class Journal(Protocol):
    """Keeps where a matching stands."""

    @property
    def due(self) -> bool:
        """Whether it is time to write again."""
        ...

    def read(self) -> Standing | None:
        """Where an earlier process stood; ``None`` if there is nothing to go on from."""
        ...

    def write(self, standing: Standing) -> None:
        """Replace what is kept, whole or not at all."""
        ...


class NoJournal:
    """Keeps nothing."""

    due = False

    def read(self) -> None:
        """Nothing was kept."""

    def write(self, standing: Standing) -> None:
        """Keep nothing."""
