"""Layer-wise barriers with the layers down the side."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_rebasin.errors import DataError
from lightning_rebasin.landscape.layer_values import LayerBarriers
from lightning_rebasin.landscape.tables import main_metric
from lightning_rebasin.plotting.style import cycle, finish, new_figure, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def plot_layers(
    results: Mapping[str, LayerBarriers],
    metric: str | None = None,
    *,
    path: str | Path | None = None,
    title: str = "",
) -> Figure:
    """Draw the barrier of every layer: the layers down the side, one colour per result, one marker per base.

    Args:
        results: Barriers of the same layers by label; ``{"naive": ..., "matched": ...}``.
        metric: Which metric; the first loss if omitted.
        path: Save the picture there, too; the suffix decides the format.
        title: Title of the picture.

    Returns:
        The figure.

    Raises:
        DataError: The results have other layers, or not this metric.
        MissingExtraError: matplotlib is not installed.
    """
    first, *others = results.values()
    if any(other.layers != first.layers for other in others):
        raise DataError("the results to draw do not have the same layers")
    name = main_metric(first.values, metric)
    figure = new_figure((5.6, 1.5 + 0.22 * max(len(first.layers), 6)))
    axes = figure.subplots()
    axes.axvline(0, color="0.6", linewidth=0.8)
    for colour, (label, result) in zip(
        cycle(len(results)), results.items(), strict=True
    ):
        _draw(axes, result, name, label, colour)
    axes.set_yticks(range(len(first.layers)), first.layers, fontsize=7)
    # The input is at the top.
    axes.invert_yaxis()
    axes.set_xlabel(f"barrier of {name} ({first.mode})")
    finish(axes)
    return save(figure, path, title)


def _draw(
    axes: Axes, result: LayerBarriers, name: str, label: str, colour: str
) -> None:
    """The barriers of both bases: filled circles and hollow squares."""
    places = range(len(result.layers))
    styles = {"a": ("o", colour, "-"), "b": ("s", "white", ":")}
    for base, row in result.heights(name).items():
        marker, face, line = styles[base]
        text = f"from {base}"
        axes.plot(
            row,
            places,
            marker=marker,
            markersize=4,
            markerfacecolor=face,
            linestyle=line,
            linewidth=1,
            color=colour,
            label=f"{label}, {text}" if label else text,
        )
