"""The rays of a star, beside the lines between its ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_rebasin.landscape.barrier import BarrierCurve
from lightning_rebasin.plotting.style import cycle, finish, new_figure, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def plot_star(
    rays: Sequence[BarrierCurve],
    pairs: Mapping[tuple[int, int], BarrierCurve],
    metric: str,
    *,
    path: str | Path | None = None,
    title: str = "",
) -> Figure:
    """Draw one metric from the centre to every end, and between the ends, at one scale.

    Args:
        rays: Curves from the centre (λ = 0) to each end.
        pairs: Curves between every two ends.
        metric: Which metric.
        path: Save the picture there, too; the suffix decides the format.
        title: Title of the picture.

    Returns:
        The figure.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure = new_figure((8.4, 3.6))
    left, right = figure.subplots(1, 2, sharey=True)
    ends = {f"to end {k}": ray for k, ray in enumerate(rays)}
    _draw(left, ends, metric)
    left.set_xlabel("center → end")
    left.set_ylabel(metric)
    lines = {f"{i} – {j}": curve for (i, j), curve in pairs.items()}
    _draw(right, lines, metric)
    right.set_xlabel("end → end")
    return save(figure, path, title)


def _draw(axes: Axes, curves: Mapping[str, BarrierCurve], metric: str) -> None:
    for colour, (label, curve) in zip(
        cycle(len(curves)), curves.items(), strict=True
    ):
        height = curve.height(metric)
        axes.plot(
            curve.lambdas,
            curve.values[metric],
            marker="o",
            markersize=3,
            color=colour,
            label=f"{label}: barrier {height:.3g}",
        )
    finish(axes)
