"""Predictions of a barrier: the loss and its curvature along the chord, all barriers, the layers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lightning_rebasin.landscape.prediction_values import BarrierPrediction
from lightning_rebasin.plotting.style import cycle, finish, new_figure, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def plot_prediction(
    prediction: BarrierPrediction,
    *,
    path: str | Path | None = None,
    title: str = "",
) -> Figure:
    """Draw the loss along the chord, its curvature, the barriers, and what single layers do.

    Args:
        prediction: What was predicted and measured.
        path: Save the picture there, too; the suffix decides the format.
        title: Title of the picture.

    Returns:
        The figure.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    panels = 4 if prediction.layers else 3
    rows = len(prediction.layers)
    height = max(3.4, 1.3 + 0.2 * rows)
    figure = new_figure((4.2 * panels, height))
    axes = figure.subplots(1, panels, squeeze=False)[0]
    _draw_loss(axes[0], prediction)
    _draw_curvature(axes[1], prediction)
    _draw_barriers(axes[2], prediction)
    if prediction.layers:
        _draw_layers(axes[3], prediction)
    return save(figure, path, title)


def _draw_loss(axes: Axes, prediction: BarrierPrediction) -> None:
    """φ as it was measured, and the chord with what the integrals add to it."""
    measured, predicted, *_ = cycle(2)
    curve = prediction.measured
    row = curve.values[prediction.metric]
    axes.plot(
        prediction.grid.at,
        prediction.losses,
        color=measured,
        linewidth=1.2,
        label="loss",
    )
    axes.plot(
        curve.lambdas, row, "o", markersize=4, color=measured, label="measured"
    )
    styles = {
        "chord + slopes": ("s", prediction.by_slopes),
        "chord + curvatures": ("x", prediction.by_curvatures),
    }
    for label, (marker, integral) in styles.items():
        values = []
        for alpha in curve.lambdas:
            chord = (1.0 - alpha) * row[0] + alpha * row[-1]
            values.append(chord + integral(alpha))
        axes.plot(
            curve.lambdas,
            values,
            marker,
            markersize=7,
            markerfacecolor="none",
            color=predicted,
            label=label,
        )
    axes.set_xlabel("α")
    axes.set_ylabel(prediction.metric)
    finish(axes)


def _draw_curvature(axes: Axes, prediction: BarrierPrediction) -> None:
    """φ″, with the ridge (where it is negative) filled."""
    (colour,) = cycle(1)
    at, values = prediction.grid.at, prediction.curvatures
    axes.plot(
        at,
        values,
        marker="o",
        markersize=3,
        color=colour,
        label="Δ·H·Δ along the chord",
    )
    axes.fill_between(
        at,
        values,
        0,
        where=[value < 0 for value in values],
        interpolate=True,
        color=colour,
        alpha=0.2,
        label="ridge",
    )
    axes.axhline(0, color="0.6", linewidth=0.8)
    axes.set_xlabel("s")
    axes.set_ylabel("curvature")
    finish(axes)


def _draw_barriers(axes: Axes, prediction: BarrierPrediction) -> None:
    """One bar per prediction, the measured one on top."""
    barriers = prediction.barriers()
    first, second = cycle(2)
    colours = [first] + [second] * (len(barriers) - 1)
    bars = axes.barh(list(barriers), list(barriers.values()), color=colours)
    texts = [f"{value:.3g}" for value in barriers.values()]
    axes.bar_label(bars, texts, padding=3, fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.axvline(0, color="0.6", linewidth=0.8)
    axes.set_xlabel(f"barrier of {prediction.metric} at ½")
    axes.spines[["top", "right"]].set_visible(False)


def _draw_layers(axes: Axes, prediction: BarrierPrediction) -> None:
    """Layers down the side: ⅛·Δ·H·Δ and what was measured, from both ends."""
    names = [layer.layer for layer in prediction.layers]
    places = range(len(names))
    for k, colour in enumerate(cycle(2)):
        base = "ab"[k]
        measured = [layer.measured[k] for layer in prediction.layers]
        predicted = [layer.predicted[k] for layer in prediction.layers]
        axes.plot(
            measured,
            places,
            marker="o",
            markersize=4,
            color=colour,
            label=f"measured, from {base}",
        )
        axes.plot(
            predicted,
            places,
            marker="x",
            linestyle=":",
            color=colour,
            label=f"⅛·Δ·H·Δ, from {base}",
        )
    axes.axvline(0, color="0.6", linewidth=0.8)
    axes.set_yticks(places, names, fontsize=7)
    # The input is at the top.
    axes.invert_yaxis()
    axes.set_xlabel("change with the layer half way")
    finish(axes)
