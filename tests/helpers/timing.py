"""Timing two ways of doing the same thing in one process, turn by turn.

CPU time of the process, not wall-clock time: on a shared machine only the former says what the work costs.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Timing:
    """Medians in seconds and the median of the ratios."""

    ours: float
    theirs: float
    ratio: float
    runs: int

    def row(
        self,
        name: str,
        must: float | None = None,
        stretch: float | None = None,
    ) -> str:
        """One line of the table in docs/matching.md."""
        target = (
            ""
            if must is None
            else f"{must:g}×" + (f" / {stretch:g}×" if stretch else "")
        )
        return f"| {name} | {self.theirs:.4g} | {self.ours:.4g} | **{self.ratio:.1f}×** | {target} |"


def cpu_seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds and result of one call."""
    begin = time.process_time()
    result = work()
    return time.process_time() - begin, result


def compare(
    ours: Callable[[int], Any],
    theirs: Callable[[int], Any],
    runs: int,
    check: Callable[[Any, Any], None],
) -> Timing:
    """Run both for seeds ``0 … runs − 1``, interleaved, after one call of ours that compiles what must be compiled."""
    ours(0)
    a, b = [], []
    for seed in range(runs):
        (x, mine), (y, other) = (
            cpu_seconds(lambda: ours(seed)),
            cpu_seconds(lambda: theirs(seed)),
        )
        check(mine, other)
        a.append(x)
        b.append(y)
    return Timing(
        statistics.median(a),
        statistics.median(b),
        statistics.median(y / x for x, y in zip(a, b, strict=True)),
        runs,
    )
