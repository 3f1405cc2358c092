"""A barrier curve, the barrier over training, a matrix of barriers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_rebasin.errors import DataError
from lightning_rebasin.landscape.barrier import BarrierCurve
from lightning_rebasin.landscape.matrix import BarrierMatrix
from lightning_rebasin.landscape.path_curve import PathCurve
from lightning_rebasin.plotting.style import (
    cycle,
    finish,
    new_figure,
    save,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_barriers(
    curves: Mapping[str, BarrierCurve],
    metric: str | None = None,
    *,
    path: str | Path | None = None,
    title: str = "",
) -> Figure:
    """Draw curves over λ, one panel per metric, with the heights of their barriers in the legend.

    Args:
        curves: Curves by label; ``{"naive": ..., "matched": ...}``.
        metric: Draw this metric only; otherwise all that every curve has.
        path: Save the picture there, too; the suffix decides the format.
        title: Title of the picture.

    Returns:
        The figure.

    Raises:
        DataError: There is no curve, or no metric that all of them have.
        MissingExtraError: matplotlib is not installed.
    """
    shared = [
        name
        for name in next(iter(curves.values())).values
        if all(name in c.values for c in curves.values())
    ]
    names = [name for name in shared if metric in (None, name)]
    if not names:
        raise DataError(
            f"nothing to draw: the curves do not share the metric {metric!r}; they share {shared}"
        )
    figure = new_figure((4.6 * len(names), 3.4))
    for axes, name in zip(
        figure.subplots(1, len(names), squeeze=False)[0], names, strict=True
    ):
        for colour, (label, curve) in zip(
            cycle(len(curves)), curves.items(), strict=True
        ):
            height = f"barrier {curve.height(name):.3g}"
            text = f"{label}: {height}" if label else height
            axes.plot(
                curve.lambdas,
                curve.values[name],
                marker="o",
                markersize=3,
                color=colour,
                label=text,
            )
        along = all(isinstance(c, PathCurve) for c in curves.values())
        axes.set_xlabel("t" if along else "λ")
        axes.set_ylabel(name)
        finish(axes)
    return save(figure, path, title)


def plot_history(
    steps: Sequence[float],
    heights: Mapping[str, Sequence[float]],
    *,
    path: str | Path | None = None,
    title: str = "",
    xlabel: str = "step",
    ylabel: str = "barrier",
) -> Figure:
    """Draw how barriers develop over a training.

    Args:
        steps: Steps or epochs at which they were measured.
        heights: For each label one height per step.
        path: Save the picture there, too; the suffix decides the format.
        title: Title of the picture.
        xlabel: What ``steps`` counts.
        ylabel: What is drawn.

    Returns:
        The figure.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure = new_figure((5.4, 3.6))
    axes = figure.subplots()
    for colour, (label, row) in zip(
        cycle(len(heights)), heights.items(), strict=True
    ):
        axes.plot(
            steps, row, marker="o", markersize=3.5, color=colour, label=label
        )
    axes.axhline(0, color="0.6", linewidth=0.8)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    finish(axes)
    return save(figure, path, title)


def plot_matrix(
    matrix: BarrierMatrix, *, path: str | Path | None = None, title: str = ""
) -> Figure:
    """Draw a matrix of barriers between two trajectories as a heat map.

    Args:
        matrix: Barriers between every snapshot of one run (rows) and every snapshot of another (columns).
        path: Save the picture there, too; the suffix decides the format.
        title: Title of the picture.

    Returns:
        The figure.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    rows, columns = len(matrix.steps_a), len(matrix.steps_b)
    figure = new_figure(
        (1.8 + 0.55 * max(columns, 4), 1.4 + 0.5 * max(rows, 4))
    )
    axes = figure.subplots()
    image = axes.imshow(
        matrix.heights, origin="lower", cmap="viridis", aspect="auto", vmin=0
    )
    axes.set_xticks(
        range(columns),
        [str(step) for step in matrix.steps_b],
        rotation=45,
        ha="right",
    )
    axes.set_yticks(range(rows), [str(step) for step in matrix.steps_a])
    axes.set_xlabel("step of b")
    axes.set_ylabel("step of a")
    highest = max(max(row) for row in matrix.heights)
    if rows * columns <= 144:
        for i, row in enumerate(matrix.heights):
            for j, value in enumerate(row):
                colour = "black" if value > 0.6 * highest else "white"
                axes.text(
                    j,
                    i,
                    f"{value:.2g}",
                    ha="center",
                    va="center",
                    fontsize=7,
                    color=colour,
                )
    figure.colorbar(
        image,
        ax=axes,
        label=f"barrier of {matrix.metric} ({matrix.convention})",
    )
    return save(figure, path, title)
