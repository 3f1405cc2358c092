"""What all pictures share: figures without pyplot, colours, legends, files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_rebasin.errors import MissingExtraError
from lightning_rebasin.files import atomic_path

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


def require_matplotlib() -> None:
    """Raise :class:`~lightning_rebasin.MissingExtraError` unless matplotlib is installed."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            "pictures need matplotlib: pip install 'lightning-rebasin[plot]'"
        ) from error


def new_figure(size: tuple[float, float]) -> Figure:
    """An empty figure of this size in inches.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained", dpi=120)


def cycle(count: int) -> list[str]:
    """So many colours, from the beginning again when they run out."""
    return [_COLOURS[i % len(_COLOURS)] for i in range(count)]


def finish(axes: Axes) -> None:
    """Grid, frame and legend of a panel."""
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


def save(figure: Figure, path: str | Path | None, title: str) -> Figure:
    """Give a figure its title, and write it if there is a path.

    Raises:
        OutputError: The folder does not exist or cannot be written.
    """
    if title:
        figure.suptitle(title, fontsize=10)
    if path is not None:
        kind: dict[str, Any] = {
            "format": Path(path).suffix.lstrip(".") or "png"
        }
        with atomic_path(path) as temporary:
            figure.savefig(temporary, **kind)
    return figure
