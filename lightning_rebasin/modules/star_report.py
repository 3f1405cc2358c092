"""What a centre is worth: barriers to every end, those between the ends beside them, and the lengths of the detours.

Source: Lin, Li, Wu, "Exploring neural network landscapes: star-shaped and geodesic connectivity" (arXiv 2404.06391).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, final

from torch import Tensor

from lightning_rebasin.landscape.barrier import BarrierCurve
from lightning_rebasin.landscape.geometry import separation
from lightning_rebasin.landscape.measure import measure_barrier
from lightning_rebasin.landscape.paths import Star
from lightning_rebasin.landscape.points import State
from lightning_rebasin.modules.inner import InnerModel

_LOSS = "loss"


@final
@dataclass(frozen=True)
class StarReport:
    """Curves along rays and between ends.

    Args:
        rays: The curve from the centre (λ = 0) to each end.
        pairs: The curve between every two ends, in the frame in which the centre sees them.
        lengths: ``(‖θ_i − c‖ + ‖c − θ_j‖) / ‖θ_i − θ_j‖`` of every two ends: 1 is a straight line,
            NaN that the ends are the same.
    """

    rays: tuple[BarrierCurve, ...]
    pairs: Mapping[tuple[int, int], BarrierCurve]
    lengths: Mapping[tuple[int, int], float]

    @property
    def center_barriers(self) -> tuple[float, ...]:
        """The barrier between the centre and each end."""
        return tuple(ray.height(_LOSS) for ray in self.rays)

    @property
    def pair_barriers(self) -> dict[tuple[int, int], float]:
        """The barrier between every two ends."""
        return {
            pair: curve.height(_LOSS) for pair, curve in self.pairs.items()
        }

    def largest(self, i: int, j: int) -> tuple[float, float]:
        """The largest loss on the line between two ends, and on the way over the centre."""
        over = (*self.rays[i].values[_LOSS], *self.rays[j].values[_LOSS])
        return max(self.pairs[i, j].values[_LOSS]), max(over)

    def __str__(self) -> str:
        lines = ["ends     largest loss: line  over the center  length"]
        for (i, j), length in self.lengths.items():
            line, over = self.largest(i, j)
            lines.append(
                f"{i:>3} {j:>3} {line:>18.4g} {over:>16.4g} {length:>7.3f}"
            )
        lines.append("end      barrier to the center")
        for end, height in enumerate(self.center_barriers):
            lines.append(f"{end:>3} {height:>22.4g}")
        return "\n".join(lines)


def measure_star(
    inner: InnerModel,
    star: Star,
    names: Sequence[str],
    dataloader: Iterable[Any],
    *,
    points: int,
    batch_norm: Iterable[Any] | None,
) -> StarReport:
    """Measure all lines of a star, and those between its ends.

    Args:
        inner: Computes the losses.
        star: The centre and the ends.
        names: Tensors that count for lengths.
        dataloader: Held-out batches.
        points: Evenly spaced points of every line.
        batch_norm: Training batches for the statistics of every point.
    """
    batches = None if batch_norm is None else list(batch_norm)

    def curve(a: State, b: State) -> BarrierCurve:
        return measure_barrier(
            inner,
            _inside(a),
            _inside(b),
            dataloader,
            points=points,
            loss=lambda module, batch: module(batch, 0),
            batch_norm=batches,
        )

    numbers = list(combinations(range(len(star.models)), 2))
    return StarReport(
        tuple(curve(star.centre, end) for end in star.models),
        {(i, j): curve(star.models[i], star.models[j]) for i, j in numbers},
        {(i, j): _length(star, i, j, names) for i, j in numbers},
    )


def _inside(state: State) -> dict[str, Tensor]:
    """The names that the weights have in the network's wrapper."""
    return {f"model.{name}": t.detach() for name, t in state.items()}


def _length(star: Star, i: int, j: int, names: Sequence[str]) -> float:
    a, b = star.models[i], star.models[j]
    there = separation(a, star.centre, names).distance
    back = separation(star.centre, b, names).distance
    straight = separation(a, b, names).distance
    # Ends that are the same have no way between them.
    return (there + back) / straight if straight else math.nan
