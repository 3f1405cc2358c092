"""``loss_plane``: the loss on a plane through weight space, as a contour picture shows it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lightning_rebasin.errors import ConfigurationError
from lightning_rebasin.landscape.directions import random_direction
from lightning_rebasin.landscape.measure import Loaders, evaluate_points
from lightning_rebasin.landscape.path_curve import as_path
from lightning_rebasin.landscape.paths.plane import Plane
from lightning_rebasin.landscape.paths.span import Span
from lightning_rebasin.landscape.plane_values import LossPlane
from lightning_rebasin.landscape.points import Point, State, WeightPath
from lightning_rebasin.landscape.probe import LossFunction
from lightning_rebasin.landscape.weights import (
    check_states,
    parameter_names,
)

#: At how many t a curve is drawn.
_DRAWN = 61


def loss_plane(
    module: nn.Module,
    models: Sequence[State],
    dataloader: Loaders,
    *,
    directions: Sequence[Mapping[str, Tensor]] | None = None,
    points: int | tuple[int, int] = 21,
    margin: float = 0.2,
    curve: WeightPath | Sequence[State] | None = None,
    seed: int = 0,
    loss: LossFunction | None = None,
    batch_norm: Iterable[Any] | None = None,
    limit_batches: int | None = None,
    progress: bool = False,
) -> LossPlane:
    """Measure a module's loss and metrics on the plane through three models, or around one.

    Three models a, b, c: with ``u = b − a`` and ``v = (c − a) − ((c − a)·u / u·u) u`` the point (x, y) is
    ``a + x·u/‖u‖ + y·v/‖v‖``; coordinates are distances over the parameters.

    One model θ: the point (x, y) is ``θ + x·d + y·e`` for the two ``directions`` as they are (see
    :func:`~lightning_rebasin.landscape.filter_normalised`), random filter-normalised ones if omitted.

    Args:
        module: As for :func:`~lightning_rebasin.measure_barrier`.
        models: Three sets of weights, or one.
        dataloader: Batches, or a list of loaders.
        directions: Two directions from a single model.
        points: Grid points along each axis, or along x and along y.
        margin: How far the grid reaches beyond three models, per width or height of their triangle.  Around one model
            it reaches from −1 to 1.
        curve: A path, or sets of weights, to be drawn in by projection.  Only for three models.
        seed: Seeds random directions.
        loss: ``loss(module, batch)``, as for ``measure_barrier``.
        batch_norm: Training batches on which batch-norm statistics are re-estimated at every point.  Without them the
            variances are combined like weights, and outside the triangle they may be negative and the loss NaN.
        limit_batches: Use only the first so many batches of each loader.
        progress: Show a progress bar over the batches.

    Returns:
        The plane.

    Raises:
        ConfigurationError: Not three models or one, models on a line, a grid that is too small, or no ``loss``.
        StateDictError: The weights do not fit the module.
        DataError: There is no batch.

    Example:
        >>> import torch
        >>> module = nn.Linear(2, 1, bias=False)
        >>> a, b, c = ({"weight": torch.tensor([w])} for w in ([0.0, 0.0], [4.0, 0.0], [1.0, 2.0]))
        >>> def loss(module, batch):
        ...     return module.weight.square().sum()
        >>> plane = loss_plane(module, [a, b, c], [torch.ones(1, 2)], points=3, margin=0.0, loss=loss)
        >>> plane.xs, plane.ys, plane.values["loss"][0]
        ((0.0, 2.0, 4.0), (0.0, 1.0, 2.0), (0.0, 4.0, 16.0))

    References:
        Garipov et al., NeurIPS 2018, figure 1; Li et al., "Visualizing the Loss Landscape of Neural Nets", 2018.
    """
    states = check_states(module, models)
    if curve is not None and len(states) != 3:
        raise ConfigurationError("curve= needs the plane of three models")
    chart = _chart(module, states, directions, seed)
    xs, ys = _axes(chart.corners, points, margin)
    grid = [chart.where.at(x, y) for y in ys for x in xs]
    measured = evaluate_points(
        module,
        [*chart.points, *grid],
        dataloader,
        loss=loss,
        batch_norm=batch_norm,
        limit_batches=limit_batches,
        progress=progress,
        label="plane",
    )
    drawn, off = _drawn(chart.where, curve)
    columns = measured.columns()
    count, wide = len(states), len(xs)
    rows = range(count, count + len(grid), wide)
    return LossPlane(
        xs,
        ys,
        {n: tuple(c[k : k + wide] for k in rows) for n, c in columns.items()},
        chart.corners,
        {n: c[:count] for n, c in columns.items()},
        drawn,
        off,
        measured.better(),
        measured.samples,
    )


@dataclass(frozen=True)
class _Chart:
    """A plane with the models on it."""

    where: Plane | Span
    corners: tuple[tuple[float, float], ...]
    points: tuple[Point, ...]


def _chart(
    module: nn.Module,
    states: Sequence[State],
    directions: Sequence[Mapping[str, Tensor]] | None,
    seed: int,
) -> _Chart:
    """The plane through three models, or around one."""
    if len(states) == 3 and directions is None:
        plane = Plane(tuple(states), frozenset(parameter_names(module)))
        # As anchors, not by coordinates: their values are those of the models to the bit.
        exact = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
        found = tuple(Point(plane.models, c) for c in exact)
        return _Chart(plane, plane.coordinates, found)
    if len(states) != 1:
        raise ConfigurationError(
            f"a plane needs three models, or one with two directions, got {len(states)} models"
        )
    if directions is None:
        directions = [
            random_direction(module, states[0], 2 * seed + k) for k in (0, 1)
        ]
    if len(directions) != 2:
        raise ConfigurationError(
            f"a plane needs two directions, got {len(directions)}"
        )
    span = Span(states[0], tuple(directions))
    return _Chart(span, ((0.0, 0.0),), (span.at(0.0, 0.0),))


def _axes(
    corners: Sequence[tuple[float, float]],
    points: int | tuple[int, int],
    margin: float,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Evenly spaced coordinates around the models."""
    counts = (points, points) if isinstance(points, int) else points
    if min(counts) < 2 or not math.isfinite(margin) or margin < 0:
        raise ConfigurationError(
            f"points={points!r}, margin={margin!r}: a plane needs two points or more along each axis and a margin "
            "that is not negative"
        )
    axes = []
    for axis, count in enumerate(counts):
        low = min(corner[axis] for corner in corners)
        high = max(corner[axis] for corner in corners)
        extra = margin * (high - low) if len(corners) > 1 else 1.0
        start, width = low - extra, high - low + 2 * extra
        row = [start + width * k / (count - 1) for k in range(count)]
        axes.append(tuple(row))
    return axes[0], axes[1]


def _drawn(
    where: Plane | Span, curve: WeightPath | Sequence[State] | None
) -> tuple[tuple[tuple[float, float], ...], float]:
    """Where a curve runs on the plane, and how far from the plane it gets."""
    if curve is None or isinstance(where, Span):
        return (), 0.0
    route = as_path(curve)
    found, off = [], 0.0
    for k in range(_DRAWN):
        x, y, distance = where.project(route.at(k / (_DRAWN - 1)).state())
        found.append((x, y))
        off = max(off, distance)
    return tuple(found), off
