"""The loss along paths between inputs, with a strip of the images on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_rebasin.errors import DataError
from lightning_rebasin.inputs.paths import (
    InputPath,
    InputPaths,
    corner_marks,
)
from lightning_rebasin.plotting.style import cycle, finish, new_figure, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Images on the way from one end to the other.
_FRAMES = 9
#: Pairs in one picture, unless somebody says which.
_PAIRS = 3
_CHANNELS = (1, 3)


def plot_inputs(
    groups: Mapping[str, InputPaths],
    *,
    pairs: Sequence[int] | None = None,
    path: str | Path | None = None,
    title: str = "",
) -> Figure:
    """Draw the loss along paths, one row per pair; beside each curve the inputs along its paths if they are images.

    Args:
        groups: Paths between the same pairs, by label.
        pairs: Which pairs; the first three if omitted.
        path: Save the picture there, too; the suffix decides the format.
        title: Title of the picture.

    Returns:
        The figure.

    Raises:
        DataError: There is nothing to draw, or no such pair.
        MissingExtraError: matplotlib is not installed.
    """
    chosen = _chosen(groups, pairs)
    first = next(iter(groups.values()))
    drawn = is_image(first[chosen[0]].corners[0])
    figure = new_figure((9.6 if drawn else 4.6, 2.4 * len(chosen)))
    widths = [1.0, 1.5] if drawn else [1.0]
    panels = figure.subplots(
        len(chosen), len(widths), squeeze=False, width_ratios=widths
    )
    for row, pair in zip(panels, chosen, strict=True):
        own = {label: paths[pair] for label, paths in groups.items()}
        _curves(row[0], own, pair)
        if drawn:
            _strips(row[1], own)
    return save(figure, path, title)


def _chosen(
    groups: Mapping[str, InputPaths], pairs: Sequence[int] | None
) -> list[int]:
    """The pairs to draw; all groups have them."""
    shortest = min((len(paths) for paths in groups.values()), default=0)
    chosen = list(range(min(shortest, _PAIRS)))
    if pairs is not None:
        chosen = list(pairs)
    for label, paths in groups.items():
        missing = [i for i in chosen if not 0 <= i < len(paths)]
        if missing:
            raise DataError(f"{label!r} has no pair {missing[0]}")
    if not chosen:
        raise DataError("there is no path to draw")
    return chosen


def is_image(corner: Tensor) -> bool:
    """Whether an input can be shown: ``(1 or 3, height, width)``.

    Example:
        >>> is_image(torch.zeros(3, 8, 8)), is_image(torch.zeros(64))
        (True, False)
    """
    return corner.ndim == 3 and corner.shape[0] in _CHANNELS


def _curves(axes: Axes, own: Mapping[str, InputPath], pair: int) -> None:
    """The losses over λ, with a dot at every corner."""
    for colour, (label, path) in zip(
        cycle(len(own)), own.items(), strict=True
    ):
        axes.plot(
            path.lambdas,
            path.losses,
            color=colour,
            linewidth=1.2,
            label=f"{label}: max {path.maximum:.3g}",
        )
        inner = corner_marks(path.corners)[1:-1]
        heights = []
        for mark in inner:
            # A corner was measured, up to the rounding of its λ.
            gaps = [abs(lam - mark) for lam in path.lambdas]
            heights.append(path.losses[gaps.index(min(gaps))])
        axes.plot(inner, heights, "o", color=colour, markersize=3.5)
    axes.set_xlabel("λ (part of the length)")
    axes.set_ylabel(f"loss, pair {pair}")
    finish(axes)


def _strips(axes: Axes, own: Mapping[str, InputPath]) -> None:
    """One row of images for each path."""
    rows = []
    for path in own.values():
        frames = [path.input_at(k / (_FRAMES - 1)) for k in range(_FRAMES)]
        rows.append(torch.cat(frames, dim=2))
    strip = torch.cat(rows, dim=1).detach().float()
    # Every channel to 0 … 1 over what is shown, since nobody says how inputs were normalised.
    low = strip.amin((1, 2), keepdim=True)
    high = strip.amax((1, 2), keepdim=True)
    shown = ((strip - low) / (high - low).clamp(min=1e-12)).permute(1, 2, 0)
    axes.imshow(shown.numpy(), cmap="gray", aspect="equal")
    height = strip.shape[1] / len(own)
    axes.set_yticks([height * (k + 0.5) for k in range(len(own))], list(own))
    axes.set_xticks([])
    axes.tick_params(length=0, labelsize=8)
    axes.spines[:].set_visible(False)
