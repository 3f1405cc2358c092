"""Instability against the step of the fork."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_rebasin.landscape.instability_values import Instability
from lightning_rebasin.plotting.style import cycle, finish, new_figure, save

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_instability(
    results: Mapping[str, Instability],
    *,
    path: str | Path | None = None,
    title: str = "",
) -> Figure:
    """Draw instability over the fork, as a share of training: the mean over seeds as a line, each seed as a point.

    Args:
        results: Results by label.
        path: Save the picture there, too; the suffix decides the format.
        title: Title of the picture.

    Returns:
        The figure.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure = new_figure((5.4, 3.6))
    axes = figure.subplots()
    for colour, (label, found) in zip(
        cycle(len(results)), results.items(), strict=True
    ):
        shares = [100 * fork / found.steps for fork in found.forks]
        text = label or f"mean of {len(found.seeds)} trainings"
        axes.plot(shares, found.means, color=colour, label=text)
        for seed in found.seeds:
            heights = found.heights(seed)
            axes.plot(shares, heights, "o", markersize=4, color=colour)
    threshold = next(iter(results.values())).threshold
    axes.axhline(
        threshold,
        color="0.5",
        linestyle=":",
        linewidth=1,
        label=f"stable below {threshold:g}",
    )
    metric = next(iter(results.values())).metric
    axes.set_xlabel("fork, % of training")
    axes.set_ylabel(f"instability ({metric})")
    finish(axes)
    return save(figure, path, title)
