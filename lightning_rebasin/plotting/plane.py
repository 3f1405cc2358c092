"""Contours of the loss on a plane, with the models and a curve."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_rebasin.errors import ConfigurationError
from lightning_rebasin.landscape.plane_values import LossPlane
from lightning_rebasin.landscape.tables import main_metric
from lightning_rebasin.plotting.style import new_figure, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: How many levels there are, and the first one as a share of the whole range.
_LEVELS, _FINEST = 14, 1e-3
#: From which ratio of the sides on lengths are no longer drawn at one scale.
_SLIVER = 4.0


def plot_plane(
    plane: LossPlane,
    metric: str | None = None,
    *,
    path: str | Path | None = None,
    title: str = "",
    levels: str | Sequence[float] = "log",
    labels: Sequence[str] | None = None,
) -> Figure:
    """Draw contours of one metric, the models as points and the curve as a line.

    Args:
        plane: What was measured.
        metric: Which metric; the first loss if omitted.
        path: Save the picture there, too; the suffix decides the format.
        title: Title of the picture.
        levels: ``"log"`` or ``"linear"``, see :func:`contour_levels`; or the levels, ascending.
        labels: Names of the models; a, b, c if omitted.

    Returns:
        The figure.

    Raises:
        DataError: The plane has no such metric.
        ConfigurationError: The levels are unknown.
        MissingExtraError: matplotlib is not installed.
    """
    name = main_metric(plane.values, metric)
    figure = new_figure((5.4, 4.2))
    from matplotlib.colors import BoundaryNorm

    axes = figure.subplots()
    grid = plane.values[name]
    chosen = levels
    better = plane.higher_is_better.get(name, False)
    if isinstance(levels, str):
        numbers = [v for row in grid for v in row if math.isfinite(v)]
        chosen = contour_levels(numbers, levels, higher_is_better=better)
    # Each band of the picture has its own colour, however narrow it is.
    shades = BoundaryNorm(chosen, 256, extend="both")
    colours = "viridis_r" if not better else "viridis"
    image = axes.contourf(
        plane.xs,
        plane.ys,
        grid,
        levels=chosen,
        norm=shades,
        cmap=colours,
        extend="both",
    )
    axes.contour(
        plane.xs, plane.ys, grid, chosen, colors="white", linewidths=0.4
    )
    _draw_models(axes, plane, labels or "abc")
    axes.set_aspect("equal" if _is_compact(plane) else "auto")
    figure.colorbar(image, ax=axes, label=name, format="%.3g")
    return save(figure, path, title)


def contour_levels(
    values: Sequence[float],
    kind: str = "log",
    *,
    higher_is_better: bool = False,
) -> list[float]:
    """Levels between the lowest and the highest value.

    ``"log"``: distances from the best value grow geometrically, from 1/1000 of the range to all of it, so that the
    shape of a valley is seen beside walls that are a thousand times higher.  Any metric has such levels, a negative one
    too.

    Args:
        values: Finite numbers.
        kind: ``"log"`` or ``"linear"``.
        higher_is_better: The best value is the largest.

    Returns:
        Ascending levels.

    Raises:
        ConfigurationError: The kind is unknown.

    Example:
        >>> [round(level, 4) for level in contour_levels([2.0, 3.0])[:3]]
        [2.001, 2.0017, 2.0029]
    """
    if kind not in ("log", "linear"):
        raise ConfigurationError(
            f"levels={kind!r} is unknown; choose 'log', 'linear' or the levels"
        )
    low, high = min(values, default=0.0), max(values, default=0.0)
    # A flat plane still needs levels that differ.
    span = (high - low) or max(abs(low), 1.0) * 1e-6
    found = []
    for k in range(_LEVELS):
        share = k / (_LEVELS - 1)
        if kind == "log":
            share = _FINEST ** (1.0 - share)
        found.append(
            high - share * span if higher_is_better else low + share * span
        )
    return sorted(found)


def _is_compact(plane: LossPlane) -> bool:
    """Whether both axes fit into a picture at one scale; a sliver of a triangle would be a line."""
    width = plane.xs[-1] - plane.xs[0]
    height = plane.ys[-1] - plane.ys[0]
    return 1 / _SLIVER < width / height < _SLIVER


def _draw_models(axes: Axes, plane: LossPlane, labels: Sequence[str]) -> None:
    """The curve, then the models on top of it."""
    if plane.curve:
        xs, ys = zip(*plane.curve, strict=True)
        axes.plot(xs, ys, color="#D55E00", linewidth=1.6)
    for (x, y), label in zip(plane.models, labels, strict=False):
        axes.plot([x], [y], "o", color="black", markersize=5)
        axes.annotate(
            label,
            (x, y),
            xytext=(5, 5),
            textcoords="offset points",
            fontsize=10,
            color="black",
            bbox={"boxstyle": "round,pad=0.15", "fc": "white", "lw": 0},
        )
