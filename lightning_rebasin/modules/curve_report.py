"""What a learned curve is worth: every metric along it, and along the straight ways that it saves one from.

Source: Garipov et al., "Loss Surfaces, Mode Connectivity, and Fast Ensembling of DNNs", NeurIPS 2018, table 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from lightning_rebasin.landscape.path_curve import PathCurve, measure_path
from lightning_rebasin.landscape.points import State, WeightPath
from lightning_rebasin.landscape.probe import LossFunction
from lightning_rebasin.landscape.tables import (
    write_csv,
    write_json,
)
from lightning_rebasin.modules.inner import InnerModel
from lightning_rebasin.modules.path_metrics import measured_by

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMAT = "lightning-rebasin-curve"
#: Whatever leads from end to end.
Route = WeightPath | Sequence[State]


@final
@dataclass(frozen=True)
class CurveReport:
    """Paths between the same ends, by label.

    Args:
        curves: ``"naive"``, the straight way; ``"matched"``, the straight way between matched ends; ``"curve"``.

    Example:
        >>> line = PathCurve((0.0, 0.5, 1.0), {"loss": (1.0, 4.0, 1.0)}, lengths=(0.0, 1.0, 2.0), straight=2.0)
        >>> curve = PathCurve((0.0, 0.5, 1.0), {"loss": (1.0, 1.0, 1.0)}, lengths=(0.0, 2.0, 4.0), straight=2.0)
        >>> print(CurveReport({"naive": line, "curve": curve}))
        loss           lowest    highest       mean    barrier     length
        naive               1          4        2.5          3          1
        curve               1          1          1          0          2
    """

    curves: Mapping[str, PathCurve]

    def plot(
        self, path: str | Path | None = None, metric: str | None = None
    ) -> Figure:
        """Draw the paths over t, one panel per metric; needs the ``plot`` extra.

        Args:
            path: Where to save the picture; the suffix decides the format.
            metric: Draw this metric only.

        Returns:
            The matplotlib figure.

        Raises:
            DataError: It was not measured.
            MissingExtraError: matplotlib is not installed.
        """
        from lightning_rebasin.plotting import plot_barriers

        return plot_barriers(self.curves, metric, path=path)

    def to_json(self, path: str | Path) -> None:
        """Write every path as JSON, atomically; ``PathCurve.from_dict`` reads them back.

        Raises:
            OutputError: The folder does not exist or cannot be written.
        """
        curves = {label: c.to_dict() for label, c in self.curves.items()}
        write_json(path, {"format": FORMAT, "curves": curves})

    def to_page(self, path: str | Path) -> None:
        """Write every path as one interactive page that needs no network.

        Args:
            path: The HTML file.

        Raises:
            OutputError: It cannot be written.
        """
        from lightning_rebasin.plotting import write_page

        write_page(self.curves, path, title="Paths between the ends")

    def to_csv(self, path: str | Path) -> None:
        """Write one row per point of every path: label, t, length so far, the metrics.

        Raises:
            OutputError: The folder does not exist or cannot be written.
        """
        names = list(next(iter(self.curves.values())).values)
        rows: list[list[Any]] = []
        for label, curve in self.curves.items():
            for k, t in enumerate(curve.lambdas):
                values = [curve.values[name][k] for name in names]
                rows.append([label, t, curve.lengths[k], *values])
        write_csv(path, ["path", "t", "length", *names], rows)

    def __str__(self) -> str:
        heads = ("lowest", "highest", "mean", "barrier", "length")
        columns = "".join(f"{head:>11}" for head in heads)
        lines = []
        for name in next(iter(self.curves.values())).values:
            lines.append(f"{name:<10}{columns}")
            for label, curve in self.curves.items():
                found = curve.summary(name)
                numbers = (
                    found.lowest,
                    found.highest,
                    found.mean,
                    curve.height(name),
                    curve.normalised_length,
                )
                row = "".join(f"{number:>11.4g}" for number in numbers)
                lines.append(f"{label:<10}{row}")
        return "\n".join(lines)


def measure_curve(
    inner: InnerModel,
    routes: Mapping[str, Route],
    dataloader: Iterable[Any],
    *,
    points: int | Sequence[float],
    loss: LossFunction | None,
    batch_norm: Iterable[Any] | None,
    limit_batches: int | None = None,
    progress: bool = False,
) -> CurveReport:
    """Measure paths at the same t.

    Args:
        inner: The network; what its ``validation_step`` logs is measured, or else the training loss.
        routes: Paths by label; the t of the last one, corners included, are those of all.
        dataloader: Held-out batches.
        points: Evenly spaced t, or the t themselves.
        loss: Measured instead.
        batch_norm: Training batches for the statistics of every point.
        limit_batches: Use only so many batches.
        progress: Show progress bars.
    """
    batches = None if batch_norm is None else list(batch_norm)
    module, found_loss = measured_by(inner)
    chosen = loss or found_loss
    grid: int | Sequence[float] = points
    found = {}
    for label in reversed(list(routes)):
        found[label] = measure_path(
            module,
            routes[label],
            dataloader,
            grid,
            loss=chosen,
            batch_norm=batches,
            limit_batches=limit_batches,
            progress=progress,
        )
        grid = found[label].lambdas
    return CurveReport({label: found[label] for label in routes})
