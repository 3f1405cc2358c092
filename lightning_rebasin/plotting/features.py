"""Features of one or two runs over the training."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_rebasin.errors import DataError
from lightning_rebasin.landscape.features import (
    NAMES,
    WHOLE,
    FeatureHistory,
)
from lightning_rebasin.plotting.style import (
    new_figure,
    require_matplotlib,
    save,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMNS = 4


def plot_features(
    history: FeatureHistory,
    *,
    path: str | Path | None = None,
    title: str = "",
) -> Figure:
    """Draw every feature that is known over the steps; layers go from light to dark with their depth.

    Args:
        history: The features.
        path: Save the picture there, too; the suffix decides the format.
        title: Title of the picture.

    Returns:
        The figure.

    Raises:
        DataError: No feature is known at any step.
        MissingExtraError: matplotlib is not installed.
    """
    require_matplotlib()
    known = []
    for name in NAMES:
        if any(math.isfinite(value) for value in history.column(name)):
            known.append(name)
    if not known:
        raise DataError("nothing to draw: there are no features")
    rows = math.ceil(len(known) / _COLUMNS)
    figure = new_figure((3.4 * _COLUMNS, 2.6 * rows + 0.4))
    grid = figure.subplots(rows, _COLUMNS, squeeze=False).flatten()
    for axes, name in zip(grid, known, strict=False):
        _draw(axes, history, name)
    for axes in grid[len(known) :]:
        axes.set_visible(False)
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=min(8, len(labels)),
        fontsize=7,
        frameon=False,
    )
    return save(figure, path, title)


def _draw(axes: Axes, history: FeatureHistory, name: str) -> None:
    """One feature."""
    from matplotlib import colormaps

    steps = [row.step for row in history.rows]
    shades = colormaps["viridis_r"]
    for number, layer in enumerate(history.layers):
        axes.plot(
            steps,
            history.column(name, layer),
            linewidth=0.9,
            color=shades((number + 1) / (len(history.layers) + 1)),
            label=layer,
        )
    axes.plot(
        steps,
        history.column(name),
        linewidth=2,
        color="black",
        marker="o",
        markersize=2.5,
        label=WHOLE,
    )
    axes.set_title(name.replace("_", " "), fontsize=9)
    axes.set_xlabel("step", fontsize=8)
    axes.tick_params(labelsize=7)
    if name in ("slope", "curvature"):
        # They go through orders of magnitude, with either sign.
        axes.set_yscale("symlog", linthresh=0.01)
    axes.grid(visible=True, color="0.9", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
