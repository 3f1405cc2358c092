"""A point of a path that gradients flow through, to what is learned.

``φ = Σ_i c_i·θ_i`` is linear, so the gradient at an anchor is ``∂L/∂θ_i = c_i · ∂L/∂φ``: for the bend of a Bézier curve
``2t(1 − t)`` times the gradient at the point.  One tensor is made per parameter, and autograd keeps only the numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_rebasin.landscape.points import Point, State


def trainable_point(
    point: Point, names: Iterable[str], free: Sequence[State]
) -> dict[str, Tensor]:
    """The named weights of a point, as functions of the free anchors.

    Args:
        point: Where.
        names: Floating-point tensors.
        free: Anchors that are learned.  All of them take part, also those with no share in the point: processes that
            train together expect a gradient for every parameter, and so do momenta (as in the published code).

    Returns:
        New tensors by name.

    Example:
        >>> a, b = {"w": torch.tensor([1.0])}, {"w": torch.tensor([3.0])}
        >>> bend = {"w": torch.tensor([5.0], requires_grad=True)}
        >>> weights = trainable_point(Point((a, bend, b), (0.25, 0.5, 0.25)), ["w"], [bend])
        >>> weights["w"].sum().backward()
        >>> weights["w"].tolist(), bend["w"].grad.tolist()
        ([3.5], [0.5])
    """
    fixed, learned = [], {id(anchor): (anchor, 0.0) for anchor in free}
    for anchor, coefficient in zip(
        point.anchors, point.coefficients, strict=True
    ):
        if id(anchor) in learned:
            before = learned[id(anchor)][1]
            learned[id(anchor)] = (anchor, before + coefficient)
        elif coefficient != 0.0:
            fixed.append((anchor, coefficient))
    return {name: _sum(name, fixed, list(learned.values())) for name in names}


def _sum(
    name: str,
    fixed: Sequence[tuple[State, float]],
    learned: Sequence[tuple[State, float]],
) -> Tensor:
    """The fixed part first, without a graph; what is learned is added in place."""
    if len(fixed) == 2 and len(learned) == 1:
        return _one_bend(name, fixed, learned[0])
    if fixed:
        anchor, coefficient = fixed[0]
        total = torch.mul(anchor[name], coefficient)
    else:
        total = torch.zeros_like(learned[0][0][name], requires_grad=False)
    for anchor, coefficient in (*fixed[1:], *learned):
        total.add_(anchor[name], alpha=coefficient)
    return total


def _one_bend(
    name: str,
    fixed: Sequence[tuple[State, float]],
    learned: tuple[State, float],
) -> Tensor:
    """The same between two ends with one bend, in two passes over the memory instead of three.

    ``a·u + b·v + c·θ = (1 − c)·[(1 − r)·u + r·v] + c·θ`` with ``r = b/(a + b)``, since ``a + b + c = 1``.
    """
    (first, a), (second, b) = fixed
    bend, c = learned
    between = torch.lerp(first[name], second[name], b / (a + b))
    return between.lerp_(bend[name], c)


class _SquaredNorm(torch.autograd.Function):
    """``Σ x²`` with gradient ``2x``: autograd's own way makes three tensors of the size of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        flat = x.reshape(-1)
        return flat.dot(flat)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return torch.mul(x, 2 * gradients[0])


def squared_norm(tensors: Iterable[Tensor]) -> Tensor:
    """The sum of all squares, in one number; real tensors only."""
    # PyTorch leaves Function.apply without annotations.
    norms: list[Any] = [_SquaredNorm.apply(tensor) for tensor in tensors]  # type: ignore[no-untyped-call]
    return torch.stack(norms).sum()


def mean_squared_distance(
    points: Sequence[Point], names: Sequence[str]
) -> Tensor:
    """The mean over points of ``‖first anchor − second anchor‖²``.

    Args:
        points: Of lines.
        names: Tensors that count.
    """
    found = []
    for point in points:
        a, b = point.anchors
        found.append(squared_norm(a[name] - b[name] for name in names))
    return torch.stack(found).mean()
