"""Slices: some positions of a dimension, in any order that the model fixes (slice, select, split, flip, roll).

A slice alone constrains nothing.  Slicing a piece out of a concatenation gives back the piece itself, so that a gate
and a value made by one layer and split again are as free as two layers.
"""

from __future__ import annotations

import math

import numpy as np

from lightning_rebasin.symmetry.permutations.elements import IntArray
from lightning_rebasin.symmetry.permutations.label_dims import drop_dim
from lightning_rebasin.symmetry.permutations.labels import Label, fixed
from lightning_rebasin.symmetry.permutations.rules.base import Context, Results
from lightning_rebasin.symmetry.permutations.rules.operation import (
    Operation,
    dims_of,
)
from lightning_rebasin.symmetry.permutations.rules.registry import rule


@rule("slice")
def slice_(ctx: Context, op: Operation) -> Results:
    """Every ``step``-th position from ``start`` to ``end``."""
    shape = op.shape()
    dim = op.dim(len(shape))
    chosen = slice(op["start"], op["end"], op["step"])
    positions = np.arange(shape[dim])
    return [_cut(ctx, op, dim, positions[chosen])]


@rule("narrow")
def narrow(ctx: Context, op: Operation) -> Results:
    """``length`` positions from ``start``."""
    shape = op.shape()
    dim = op.dim(len(shape))
    positions = np.arange(op["length"])
    positions += op["start"]
    return [_cut(ctx, op, dim, positions)]


@rule(
    "split split_with_sizes split_copy chunk tensor_split unsafe_split unsafe_split_with_sizes unsafe_chunk"
)
def split(ctx: Context, op: Operation) -> Results:
    """Consecutive pieces of a dimension."""
    shape = op.shape()
    dim = op.dim(len(shape))
    positions = np.arange(shape[dim])
    pieces = []
    start = 0
    for output, piece in enumerate(op.out_shapes):
        stop = start + piece[dim]
        label = _cut(ctx, op, dim, positions[start:stop], output)
        pieces.append(label)
        start = stop
    return pieces


def _cut(
    ctx: Context, op: Operation, dim: int, index: IntArray, output: int = 0
) -> Label:
    """Positions of one dimension; slicing a piece out of a concatenation gives back the piece."""
    piece = ctx.piece_of(op["self"], dim, index)
    if piece is not None:
        return piece
    label = op.label()
    shape = op.out_shapes[output]
    if 0 in shape:
        # An empty piece among others.
        return fixed(shape)
    return ctx.take(label, dim, index)


@rule("select")
def select(ctx: Context, op: Operation) -> Results:
    """One position of a dimension, which goes."""
    label = op.label()
    dim = op.dim(label.ndim)
    index = op["index"] % label.shape[dim]
    return [pick(ctx, label, dim, index)]


@rule("unbind")
def unbind(ctx: Context, op: Operation) -> Results:
    """Every position of a dimension by itself."""
    label = op.label()
    dim = op.dim(label.ndim)
    places = range(len(op.results))
    # What nobody needs gets the label of the first position, which costs nothing.
    used = [place if op.needs(place) else 0 for place in places]
    picked: dict[int, Label] = {}
    for place in set(used):
        picked[place] = pick(ctx, label, dim, place)
    return [picked[place] for place in used]


def pick(ctx: Context, label: Label, dim: int, index: int) -> Label:
    """One position of a dimension; a parameter's other axes may then depend on that dimension.

    Args:
        ctx: The pass.
        label: For instance that of a stacked 2×3×4 parameter: 2 experts, 3 units, 4 inputs.
        dim: The dimension that goes, the experts.
        index: The position that is picked.  Units and inputs may be ordered differently in each expert.
    """
    for chosen in label.parts_along(dim):
        outer = chosen.elements
        for other in label.parts:
            # Parts that share a site depend on each other already.
            if set(other.sites).isdisjoint(chosen.sites):
                ctx.wishes.ask(other.elements, outer, outer.ids.size)
    positions = np.array([index])
    picked = ctx.take(label, dim, positions)
    return drop_dim(picked, dim)


@rule("flip")
def flip(ctx: Context, op: Operation) -> Results:
    """Reversed dimensions."""
    label = op.label()
    for dim in dims_of(op["dims"], label.ndim):
        positions = np.arange(label.shape[dim])
        backwards = positions[::-1]
        label = ctx.take(label, dim, backwards)
    return [label]


@rule("roll")
def roll(ctx: Context, op: Operation) -> Results:
    """Cyclic shifts, along some dimensions or of all positions in a row."""
    label = op.label()
    shape = op.shape()
    shifts, dims = op["shifts"], op["dims"]
    if dims:
        dims = dims_of(dims, len(shape))
        for shift, dim in zip(shifts, dims, strict=True):
            label = _shifted(ctx, label, dim, shift)
        return [label]
    flat = ctx.view(label, [math.prod(shape)])
    moved = _shifted(ctx, flat, 0, shifts[0])
    return [ctx.view(moved, shape)]


def _shifted(ctx: Context, label: Label, dim: int, shift: int) -> Label:
    """Positions of one dimension moved on in a circle."""
    positions = np.arange(label.shape[dim])
    moved = np.roll(positions, shift)
    return ctx.take(label, dim, moved)
