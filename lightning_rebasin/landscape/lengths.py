r"""How long a path through weight space is, in Euclidean distance.

The *normalised geodesic length* of a path is its length over the distance of its ends:

    Σ_k ‖θ_{k+1} − θ_k‖ / ‖θ_K − θ_0‖  ≥  1,

which for a path over one centre c is ``(‖θ1 − c‖ + ‖c − θ2‖)/‖θ1 − θ2‖`` (Lin, Li, Wu 2024).  No point is ever
materialised: the points are combinations of a few anchors, so that every distance follows from the inner products of
the anchors.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from lightning_rebasin.landscape.paths.polygon import Polygon
from lightning_rebasin.landscape.points import Point, State, WeightPath


def normalised_length(
    path: WeightPath,
    points: int = 61,
    names: Iterable[str] | None = None,
) -> float:
    """Length of a path over the distance of its ends.

    Args:
        path: Any path; a chain is measured exactly, a curve by as many chords as there are intervals.
        points: Number of points; 61 as Garipov et al. have it.
        names: Which tensors count; all floating-point ones if omitted.

    Returns:
        The ratio, 1 for a straight path; NaN if the ends are the same.

    Example:
        >>> a, c, b = ({"w": torch.tensor(v)} for v in ([0.0, 0.0], [3.0, 4.0], [6.0, 0.0]))
        >>> round(normalised_length(Polygon((a, c, b))), 6)
        1.666667
    """
    grid = {i / (points - 1) for i in range(points)} | set(corners(path))
    chain = [path.at(t) for t in sorted(grid)]
    length = arc_lengths(chain, names)[-1]
    straight = arc_lengths([chain[0], chain[-1]], names)[-1]
    return length / straight if straight else math.nan


def arc_lengths(
    points: Sequence[Point], names: Iterable[str] | None = None
) -> tuple[float, ...]:
    """The distance from the first point to each, along the chain through all of them.

    With ``Δc`` the difference of two points' coefficients, which sum to 0, and ``G_ij = (θ_i − θ_0)·(θ_j − θ_0)`` the
    squared distance is ``Δcᵀ G Δc``.

    Args:
        points: In order.
        names: Which tensors count; all floating-point ones if omitted.

    Returns:
        Ascending numbers, the first of which is 0.

    Example:
        >>> anchors = {"w": torch.zeros(2)}, {"w": torch.tensor([3.0, 4.0])}
        >>> arc_lengths([Point(anchors, (1.0 - t, t)) for t in (0.0, 0.25, 1.0)])
        (0.0, 1.25, 5.0)
    """
    anchors: dict[int, State] = {}
    for point in points:
        anchors.update({id(a): a for a in point.anchors})
    place = {key: number for number, key in enumerate(anchors)}
    rows = torch.zeros(len(points), len(anchors), dtype=torch.float64)
    for number, point in enumerate(points):
        for anchor, coefficient in point.parts:
            rows[number, place[id(anchor)]] += coefficient
    steps = rows.diff(dim=0)
    gram = _gram(list(anchors.values()), names)
    squared = torch.einsum("ki,ij,kj->k", steps, gram, steps)
    lengths = squared.clamp(min=0.0).sqrt().cumsum(0)
    return (0.0, *lengths.tolist())


def corners(path: object) -> tuple[float, ...]:
    """The t where a path bends sharply: the anchors of a chain."""
    if not isinstance(path, Polygon):
        return ()
    pieces = len(path.anchors) - 1
    return tuple(k / pieces for k in range(pieces + 1))


def _gram(anchors: Sequence[State], names: Iterable[str] | None) -> Tensor:
    """Inner products of the differences from the first anchor, in float64, tensor by tensor."""
    origin = anchors[0]
    total = torch.zeros(len(anchors), len(anchors), dtype=torch.float64)
    for name in origin if names is None else names:
        start = origin[name].detach()
        if not start.is_floating_point():
            continue
        start = start.to("cpu", torch.float64).flatten()
        differences = []
        for anchor in anchors:
            differences.append(anchor[name].detach().to(start).flatten())
        edges = torch.stack(differences) - start
        total += edges @ edges.T
    return total
