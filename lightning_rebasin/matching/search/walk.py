"""One descent, sweep by sweep and visit by visit, which another process can go on with."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import final

import torch
from tqdm import tqdm

from lightning_rebasin.matching.search.descent import CoordinateDescent, Duals
from lightning_rebasin.matching.search.journal import (
    Ended,
    Journal,
    Standing,
)
from lightning_rebasin.matching.search.policy import Start, orders


@final
class Walk:
    """The descents of one pair of models.

    Args:
        run: Does the visits.
        generator: Draws the orders.
        journal: Keeps where the descents stand.
        progress: Show a progress bar for each sweep.
    """

    def __init__(
        self,
        run: CoordinateDescent,
        generator: torch.Generator,
        journal: Journal,
        *,
        progress: bool = False,
    ) -> None:
        self._run = run
        self._generator = generator
        self._journal = journal
        self._progress = progress
        #: The descents that are over.
        self.ended: list[Ended] = []

    def sweeps(
        self, start: Start, standing: Standing, most: int
    ) -> Iterator[tuple[float, ...]]:
        """Sweep until nothing is gained.

        Args:
            start: Name and order of the visits.
            standing: Where the descent stands.
            most: Most sweeps.

        Yields:
            What each sweep so far gained, after each sweep.
        """
        begin = time.perf_counter() - standing.seconds
        count = len(self._run.families)
        gains = standing.gains
        visits = orders(
            start.order, count, most, self._generator, first=len(gains)
        )
        while not gains or gains[-1]:
            # An order is drawn when asked for: another process must draw the same one again.
            standing = replace(standing, generator=self._generator.get_state())
            order = next(visits, None)
            if order is None:
                break
            name = f"{start.name}, sweep {len(gains) + 1}"
            gain = self._sweep(name, order, standing, begin)
            gains = (*gains, gain)
            standing = replace(standing, gains=gains, visited=0, gain=0.0)
            yield gains
        seconds = time.perf_counter() - begin
        self.ended.append(Ended(dict(self._run.flats), gains, seconds))
        # The next descent has not begun: nothing of this one matters to it but the generator.
        self._journal.write(
            Standing(tuple(self.ended), self._generator.get_state())
        )

    def resume(self, standing: Standing) -> None:
        """Put the descent where another process left it; the generator stands there already."""
        for group, (prices, held) in standing.duals.items():
            self._run.duals[group] = Duals(prices.copy(), held.copy())
        self._run.resume(standing.flats, standing.settled)

    def _sweep(
        self, name: str, order: Sequence[int], before: Standing, begin: float
    ) -> float:
        """What one sweep gained, the part that another process did included."""
        gain = before.gain
        visits = tqdm(
            self._run.visits(order[before.visited :]),
            name,
            total=len(order),
            initial=before.visited,
            unit="group",
            leave=False,
            disable=not self._progress,
        )
        for visited, won in enumerate(visits, before.visited + 1):
            gain += won
            if self._journal.due:
                now = replace(
                    before,
                    ended=tuple(self.ended),
                    flats=dict(self._run.flats),
                    duals=self._duals(),
                    settled=self._run.settled,
                    visited=visited,
                    gain=gain,
                    seconds=time.perf_counter() - begin,
                )
                self._journal.write(now)
        return gain

    def _duals(self) -> dict[str, Duals]:
        """A copy: the solver writes into the prices."""
        found = {}
        for group, (prices, held) in self._run.duals.items():
            found[group] = Duals(prices.copy(), held.copy())
        return found
