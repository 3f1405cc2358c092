"""Writes into a part of a tensor: what lies behind a view after something was written through it.

``x[:, 1:] = y`` with a 2×3 tensor ``x`` gives ``x[:, :1]`` and ``y`` side by side: a concatenation of what is left of
the old tensor and what was written.  A write through a transpose or a reshape is undone by turning or reshaping what
was written back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from lightning_rebasin.symmetry.permutations.elements import IntArray
from lightning_rebasin.symmetry.permutations.label_dims import (
    insert_dim,
    permute,
)
from lightning_rebasin.symmetry.permutations.labels import Label
from lightning_rebasin.symmetry.permutations.rules.base import (
    Context,
    LayoutNotCovered,
    Results,
    unknown,
)
from lightning_rebasin.symmetry.permutations.rules.concatenation import (
    concatenate,
)
from lightning_rebasin.symmetry.permutations.rules.operation import Operation
from lightning_rebasin.symmetry.permutations.rules.registry import rule
from lightning_rebasin.symmetry.permutations.rules.views import order_of

#: Views that keep all positions in their row-major order.
_SAME_ORDER = (
    "aten.view",
    "aten._reshape_alias",
    "aten.reshape",
    "aten.alias",
    "aten.detach",
    "aten.unsqueeze",
    "aten.squeeze",
)
_TURNED = ("aten.t", "aten.transpose", "aten.permute")
_CUT = ("aten.slice", "aten.select", "aten.unbind")


@final
@dataclass(frozen=True)
class View:
    """A view operation to be undone: its name, its arguments but the base, and which of its results was written."""

    name: str
    arguments: Mapping[str, Any]
    output: int = 0


@rule("slice_scatter select_scatter")
def scatter_into(ctx: Context, op: Operation) -> Results:
    """A copy of ``self`` with a slice replaced."""
    name = op.name.removesuffix("_scatter")
    view = View(name, op.node.arguments)
    base = op.label("self")
    source = op.label("src")
    written = write(ctx, view, base, source)
    return [written] if written else unknown(ctx, op.node)


@rule("tape.write_back")
def write_back(ctx: Context, op: Operation) -> Results:
    """What lies behind a view after a write into the view."""
    view = View(op["view"], op["view_arguments"], op["output"])
    base = op.label("base")
    piece = op.label("piece")
    written = write(ctx, view, base, piece)
    return [written] if written else unknown(ctx, op.node)


def write(ctx: Context, view: View, base: Label, piece: Label) -> Label | None:
    """Undo one view operation.

    Args:
        ctx: The pass.
        view: The operation.
        base: What it looked at.
        piece: What was written into its result.

    Returns:
        The label of the base afterwards, or ``None`` if the view is not understood.
    """
    if view.name in _SAME_ORDER:
        if math.prod(piece.shape) != math.prod(base.shape):
            raise LayoutNotCovered("a view of pieces of numbers")
        return ctx.view(piece, base.shape)
    if view.name in _TURNED:
        order = order_of(view.name, view.arguments, piece.ndim)
        # Where each dimension went is where it comes back from.
        back = np.argsort(order)
        return permute(piece, back.tolist())
    if view.name in _CUT:
        return _write_into_slice(ctx, view, base, piece)
    return None


def _write_into_slice(
    ctx: Context, view: View, base: Label, piece: Label
) -> Label:
    """Replace those positions of one dimension that a slice reads."""
    given = view.arguments
    dim = int(given["dim"] or 0) % base.ndim
    positions = np.arange(base.shape[dim])
    if view.name == "aten.slice":
        chosen = slice(given["start"], given["end"], given["step"])
        return _replace(ctx, base, piece, dim, positions[chosen])
    # The piece has lost the dimension.
    piece = insert_dim(piece, dim)
    # What ``unbind`` gave is one of several results.
    index = given.get("index", view.output)
    return _replace(ctx, base, piece, dim, positions[[index]])


def _replace(
    ctx: Context, base: Label, piece: Label, dim: int, rows: IntArray
) -> Label:
    """Replace the positions ``rows`` of one dimension: the rest of the base is put around the piece."""
    positions = np.arange(base.shape[dim])
    if len(rows) == len(positions):
        return piece
    if len(rows) == 0:
        return base
    steps = np.diff(rows)
    if (steps != 1).any():
        return _interleave(ctx, base, piece, dim, rows)
    before = positions[: rows[0]]
    behind = positions[rows[-1] + 1 :]
    around = [piece]
    if len(before) > 0:
        around.insert(0, ctx.take(base, dim, before))
    if len(behind) > 0:
        around.append(ctx.take(base, dim, behind))
    return concatenate(ctx, around, dim)


def _interleave(
    ctx: Context, base: Label, piece: Label, dim: int, rows: IntArray
) -> Label:
    """The rest of the base with the piece behind it, put in the order of the base again."""
    positions = np.arange(base.shape[dim])
    rest = np.setdiff1d(positions, rows)
    left = ctx.take(base, dim, rest)
    apart = concatenate(ctx, [left, piece], dim)
    now_at = np.concatenate([rest, rows])
    return ctx.take(apart, dim, np.argsort(now_at))
