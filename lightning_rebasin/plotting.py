"""Pictures: a barrier curve, the barrier over training, a matrix of barriers.

Every function returns a matplotlib ``Figure`` and leaves pyplot's global state alone, so that it can be called from a
callback in the middle of a training.  matplotlib is an extra: ``pip install 'lightning-rebasin[plot]'``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_rebasin.errors import DataError, MissingExtraError
from lightning_rebasin.files import atomic_path
from lightning_rebasin.landscape.barrier import BarrierCurve
from lightning_rebasin.landscape.matrix import BarrierMatrix

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Okabe–Ito colours without yellow: told apart by everybody, and on paper.
_COLOURS = (
    "#D55E00",
    "#0072B2",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#E69F00",
    "#000000",
)


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
    figure = _figure((4.6 * len(names), 3.4))
    for axes, name in zip(
        figure.subplots(1, len(names), squeeze=False)[0], names, strict=True
    ):
        for colour, (label, curve) in zip(
            _cycle(len(curves)), curves.items(), strict=True
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
        axes.set_xlabel("λ")
        axes.set_ylabel(name)
        _finish(axes)
    return _save(figure, path, title)


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
    figure = _figure((5.4, 3.6))
    axes = figure.subplots()
    for colour, (label, row) in zip(
        _cycle(len(heights)), heights.items(), strict=True
    ):
        axes.plot(
            steps, row, marker="o", markersize=3.5, color=colour, label=label
        )
    axes.axhline(0, color="0.6", linewidth=0.8)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    _finish(axes)
    return _save(figure, path, title)


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
    figure = _figure((1.8 + 0.55 * max(columns, 4), 1.4 + 0.5 * max(rows, 4)))
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
    return _save(figure, path, title)


def require_matplotlib() -> None:
    """Raise :class:`~lightning_rebasin.MissingExtraError` unless matplotlib is installed."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            "pictures need matplotlib: pip install 'lightning-rebasin[plot]'"
        ) from error


def _figure(size: tuple[float, float]) -> Figure:
    require_matplotlib()
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained", dpi=120)


def _cycle(count: int) -> list[str]:
    return [_COLOURS[i % len(_COLOURS)] for i in range(count)]


def _finish(axes: Axes) -> None:
    axes.grid(visible=True, color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    # Above the axes: a barrier fills its panel, so no place inside is free for every curve.
    axes.legend(
        frameon=False,
        fontsize=8,
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        borderaxespad=0.2,
    )


def _save(figure: Figure, path: str | Path | None, title: str) -> Figure:
    if title:
        figure.suptitle(title, fontsize=10)
    if path is not None:
        kind: dict[str, Any] = {
            "format": Path(path).suffix.lstrip(".") or "png"
        }
        with atomic_path(path) as temporary:
            figure.savefig(temporary, **kind)
    return figure
