"""What a centre is worth: barriers to every end, those between the ends beside them, and the lengths of the detours.

Source: Lin, Li, Wu, "Exploring neural network landscapes: star-shaped and geodesic connectivity" (arXiv 2404.06391).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from lightning_rebasin.landscape.barrier import BarrierCurve
from lightning_rebasin.landscape.geometry import separation
from lightning_rebasin.landscape.measure import measure_barrier
from lightning_rebasin.landscape.paths import Star
from lightning_rebasin.landscape.points import State
from lightning_rebasin.landscape.probe import LossFunction
from lightning_rebasin.landscape.tables import (
    main_metric,
    write_csv,
    write_json,
)
from lightning_rebasin.modules.inner import InnerModel
from lightning_rebasin.modules.path_metrics import measured_by

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMAT = "lightning-rebasin-star"


@final
@dataclass(frozen=True)
class StarReport:
    """Curves along rays and between ends.

    Args:
        rays: The curve from the centre (λ = 0) to each end.
        pairs: The curve between every two ends, in the frame in which the centre sees them.
        lengths: ``(‖θ_i − c‖ + ‖c − θ_j‖) / ‖θ_i − θ_j‖`` of every two ends: 1 is a straight line,
            NaN that the ends are the same.

    Example:
        >>> ray = BarrierCurve((0.0, 0.5, 1.0), {"loss": (1.0, 3.0, 1.0), "acc": (0.9, 0.8, 0.9)})
        >>> line = BarrierCurve((0.0, 0.5, 1.0), {"loss": (1.0, 9.0, 1.0), "acc": (0.9, 0.1, 0.9)})
        >>> report = StarReport((ray, ray), {(0, 1): line}, {(0, 1): 1.5})
        >>> report.center_barriers, report.pair_barriers, report.worst(0, 1, "acc")
        ((2.0, 2.0), {(0, 1): 8.0}, (0.1, 0.8))
    """

    rays: tuple[BarrierCurve, ...]
    pairs: Mapping[tuple[int, int], BarrierCurve]
    lengths: Mapping[tuple[int, int], float]

    @property
    def metric(self) -> str:
        """The first loss that was measured."""
        return main_metric(self.rays[0].values)

    @property
    def center_barriers(self) -> tuple[float, ...]:
        """The barrier of the loss between the centre and each end; of other metrics ``rays[i].height(name)``."""
        return tuple(ray.height(self.metric) for ray in self.rays)

    @property
    def pair_barriers(self) -> dict[tuple[int, int], float]:
        """The barrier of the loss between every two ends; of other metrics ``pairs[i, j].height(name)``."""
        return {
            pair: curve.height(self.metric)
            for pair, curve in self.pairs.items()
        }

    def worst(
        self, i: int, j: int, metric: str | None = None
    ) -> tuple[float, float]:
        """The worst value on the line between two ends, and on the way over the centre.

        Args:
            i: An end.
            j: Another one.
            metric: Which metric; the first loss if omitted.

        Raises:
            DataError: It was not measured.
        """
        name = main_metric(self.rays[0].values, metric)
        line = self.pairs[i, j]
        pick = min if line.higher_is_better[name] else max
        over = (*self.rays[i].values[name], *self.rays[j].values[name])
        return pick(line.values[name]), pick(over)

    def plot(
        self, path: str | Path | None = None, metric: str | None = None
    ) -> Figure:
        """Draw the rays, and the lines between the ends beside them; needs the ``plot`` extra.

        Args:
            path: Where to save the picture; the suffix decides the format.
            metric: Which metric; the first loss if omitted.

        Returns:
            The matplotlib figure.

        Raises:
            DataError: It was not measured.
            MissingExtraError: matplotlib is not installed.
        """
        from lightning_rebasin.plotting import plot_star

        name = main_metric(self.rays[0].values, metric)
        return plot_star(self.rays, self.pairs, name, path=path)

    def to_json(self, path: str | Path) -> None:
        """Write everything as JSON, atomically.

        Raises:
            OutputError: The folder does not exist or cannot be written.
        """
        pairs = []
        for (i, j), curve in self.pairs.items():
            length = self.lengths[i, j]
            pairs.append(
                {
                    "ends": [i, j],
                    "length": None if math.isnan(length) else length,
                    "curve": curve.to_dict(),
                }
            )
        rays = [ray.to_dict() for ray in self.rays]
        write_json(path, {"format": FORMAT, "rays": rays, "pairs": pairs})

    def to_page(self, path: str | Path) -> None:
        """Write every ray and every line between ends as one interactive page that needs no network.

        Args:
            path: The HTML file.

        Raises:
            OutputError: It cannot be written.
        """
        from lightning_rebasin.plotting import write_page

        curves = {f"center – {k}": ray for k, ray in enumerate(self.rays)}
        for (i, j), line in self.pairs.items():
            curves[f"{i} – {j}"] = line
        write_page(curves, path, title="From the center to the ends")

    def to_csv(self, path: str | Path) -> None:
        """Write one row per point of every line: what it joins (0 is the centre, ends count from 1), λ, the metrics.

        Raises:
            OutputError: The folder does not exist or cannot be written.
        """
        lines = {(0, k + 1): ray for k, ray in enumerate(self.rays)}
        for (i, j), curve in self.pairs.items():
            lines[i + 1, j + 1] = curve
        names = list(self.rays[0].values)
        rows = []
        for (i, j), curve in lines.items():
            for k, lam in enumerate(curve.lambdas):
                values = [curve.values[name][k] for name in names]
                rows.append([i, j, lam, *values])
        write_csv(path, ["from", "to", "lambda", *names], rows)

    def __str__(self) -> str:
        lines = ["ends     largest loss: line  over the center  length"]
        for (i, j), length in self.lengths.items():
            line, over = self.worst(i, j)
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
    loss: LossFunction | None,
    batch_norm: Iterable[Any] | None,
    limit_batches: int | None = None,
    progress: bool = False,
) -> StarReport:
    """Measure all lines of a star, and those between its ends.

    Args:
        inner: The network; what its ``validation_step`` logs is measured, or else the training loss.
        star: The centre and the ends.
        names: Tensors that count for lengths.
        dataloader: Held-out batches.
        points: Evenly spaced points of every line.
        loss: Measured instead.
        batch_norm: Training batches for the statistics of every point.
        limit_batches: Use only so many batches.
        progress: Show progress bars.
    """
    batches = None if batch_norm is None else list(batch_norm)
    module, found_loss = measured_by(inner)
    chosen = loss or found_loss

    def curve(a: State, b: State) -> BarrierCurve:
        return measure_barrier(
            module,
            a,
            b,
            dataloader,
            points=points,
            loss=chosen,
            batch_norm=batches,
            limit_batches=limit_batches,
            progress=progress,
        )

    numbers = list(combinations(range(len(star.models)), 2))
    return StarReport(
        tuple(curve(star.centre, end) for end in star.models),
        {(i, j): curve(star.models[i], star.models[j]) for i, j in numbers},
        {(i, j): _length(star, i, j, names) for i, j in numbers},
    )


def _length(star: Star, i: int, j: int, names: Sequence[str]) -> float:
    a, b = star.models[i], star.models[j]
    there = separation(a, star.centre, names).distance
    back = separation(star.centre, b, names).distance
    straight = separation(a, b, names).distance
    # Ends that are the same have no way between them.
    return (there + back) / straight if straight else math.nan
