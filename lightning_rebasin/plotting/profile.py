"""The loss along one direction, with its bumps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_rebasin.errors import DataError
from lightning_rebasin.landscape.profile_values import LossProfile
from lightning_rebasin.plotting.style import cycle, finish, new_figure, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def plot_profiles(
    profiles: Mapping[str, LossProfile],
    metric: str | None = None,
    *,
    path: str | Path | None = None,
    title: str = "",
) -> Figure:
    """Draw profiles over α, one panel per metric; stretches along which a metric gets worse are marked.

    Args:
        profiles: Profiles by label.
        metric: Draw this metric only; otherwise all that every profile has.
        path: Save the picture there, too; the suffix decides the format.
        title: Title of the picture.

    Returns:
        The figure.

    Raises:
        DataError: There is no metric that all profiles have.
        MissingExtraError: matplotlib is not installed.
    """
    first, *others = profiles.values()
    names = []
    for name in first.values:
        shared = all(name in other.values for other in others)
        if shared and metric in (None, name):
            names.append(name)
    if not names:
        raise DataError(
            f"nothing to draw: the profiles do not share the metric {metric!r}"
        )
    figure = new_figure((4.6 * len(names), 3.4))
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    for axes, name in zip(panels, names, strict=True):
        colours = cycle(len(profiles))
        for colour, label in zip(colours, profiles, strict=True):
            _draw(axes, profiles[label], name, label, colour)
        axes.set_xlabel("α")
        axes.set_ylabel(name)
        finish(axes)
    return save(figure, path, title)


def _draw(
    axes: Axes, profile: LossProfile, name: str, label: str, colour: str
) -> None:
    """One profile, with thick lines where it gets worse."""
    row = profile.values[name]
    bump = f"bump {profile.bump(name):.3g}"
    text = f"{label}: {bump}" if label else bump
    axes.plot(
        profile.alphas,
        row,
        marker="o",
        markersize=2.5,
        linewidth=1.2,
        color=colour,
        label=text,
    )
    for start, peak, _ in profile.bumps(name):
        i = profile.alphas.index(start)
        j = profile.alphas.index(peak) + 1
        axes.plot(
            profile.alphas[i:j],
            row[i:j],
            color=colour,
            linewidth=5,
            alpha=0.3,
            solid_capstyle="round",
        )
