"""Operations that look at the same positions in another shape: views, transposes, broadcasts, repeats."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lightning_rebasin.symmetry.permutations import label_dims
from lightning_rebasin.symmetry.permutations.rules.base import (
    Context,
    Results,
    unknown,
)
from lightning_rebasin.symmetry.permutations.rules.operation import (
    Operation,
    dims_of,
)
from lightning_rebasin.symmetry.permutations.rules.registry import rule


@rule(
    "alias detach view_as contiguous _unsafe_view view reshape _reshape_alias unflatten flatten"
)
def view(ctx: Context, op: Operation) -> Results:
    """Row-major reshape."""
    label = op.label()
    shape = op.out_shape
    if math.prod(label.shape) != math.prod(shape):
        # ``view(dtype)`` cuts numbers into pieces.
        return unknown(ctx, op.node)
    return [ctx.view(label, shape)]


@rule("t transpose permute")
def permute(_ctx: Context, op: Operation) -> Results:
    """Reordered dimensions."""
    label = op.label()
    order = order_of(op.name, op.node.arguments, label.ndim)
    return [label_dims.permute(label, order)]


def order_of(name: str, arguments: Mapping[str, Any], ndim: int) -> list[int]:
    """Which old dimension each new one is.

    Args:
        name: ``"aten.permute"``, ``"aten.transpose"`` or ``"aten.t"``.
        arguments: Those of the operation.
        ndim: Number of dimensions.

    Example:
        >>> order_of("aten.permute", {"dims": [2, 0, -2]}, 3)
        [2, 0, 1]
    """
    if name == "aten.permute":
        return dims_of(arguments["dims"], ndim)
    order = list(range(ndim))
    if name == "aten.t":
        # A vector stays as it is.
        order.reverse()
        return order
    swapped = [arguments["dim0"], arguments["dim1"]]
    if ndim > 0:
        first, second = dims_of(swapped, ndim)
        order[first], order[second] = second, first
    return order


@rule("unsqueeze")
def unsqueeze(_ctx: Context, op: Operation) -> Results:
    """A new dimension of size 1."""
    label = op.label()
    dim = op.dim(label.ndim + 1)
    return [label_dims.insert_dim(label, dim)]


@rule("squeeze")
def squeeze(_ctx: Context, op: Operation) -> Results:
    """Dimensions of size 1 dropped."""
    label = op.label()
    shape = label.shape
    given = op.get("dim")
    # An empty list drops nothing, while no list drops all of them.
    dims = [] if given == [] else dims_of(given, label.ndim)
    for dim in sorted(dims, reverse=True):
        if shape[dim] == 1:
            label = label_dims.drop_dim(label, dim)
    return [label]


@rule("expand expand_as broadcast_to")
def expand(_ctx: Context, op: Operation) -> Results:
    """Broadcast: the new positions are copies."""
    label = op.label()
    return [label_dims.expand(label, op.out_shape)]


@rule("repeat")
def repeat(ctx: Context, op: Operation) -> Results:
    """Every dimension becomes (repeat, old): a 2×3 tensor repeated (1, 4) times is a view of 1×2×4×3."""
    label = op.label()
    repeats = op["repeats"]
    new_dims = len(repeats) - label.ndim
    label = label_dims.insert_dims(label, range(new_dims))
    grown = []
    for times, size in zip(repeats, label.shape, strict=True):
        grown += [times, size]
    # A dimension of size 1 before each old one.
    label = label_dims.insert_dims(label, range(0, len(grown), 2))
    label = label_dims.expand(label, grown)
    return [ctx.view(label, op.out_shape)]


@rule("as_strided")
def as_strided(ctx: Context, op: Operation) -> Results:
    """The identity on an unchanged shape with row-major strides; anything else is not understood."""
    label = op.label()
    size = op["size"]
    same_size = math.prod(size) == math.prod(label.shape)
    row_major = _is_row_major(size, op["stride"])
    if op["storage_offset"] or not same_size or not row_major:
        return unknown(ctx, op.node)
    return [ctx.view(label, size)]


def _is_row_major(size: list[int], stride: list[int]) -> bool:
    """Whether strides are those of a tensor without gaps."""
    behind = 1
    for length, step in zip(reversed(size), reversed(stride), strict=True):
        # One position has no step to the next.
        if length != 1 and step != behind:
            return False
        behind *= length
    return True


@rule("view_as_real")
def view_as_real(_ctx: Context, op: Operation) -> Results:
    """A last dimension (real, imaginary)."""
    label = op.label()
    return [label_dims.insert_pinned(label, label.ndim, 2)]


@rule("view_as_complex")
def view_as_complex(ctx: Context, op: Operation) -> Results:
    """The last dimension becomes the real and imaginary part."""
    label = op.label()
    last = label.ndim - 1
    return [ctx.pin_and_reduce(label, [last], "real and imaginary part")]
