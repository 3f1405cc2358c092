"""Gathers and scatters: one dimension is addressed by an index at every position of the others, or is written there.

The addressed dimension is pinned; along all others the tensors meet position by position.
"""

from __future__ import annotations

from collections.abc import Sequence

from lightning_rebasin.symmetry.permutations.align import Letter
from lightning_rebasin.symmetry.permutations.label_dims import (
    drop_dim,
    insert_dim,
    insert_pinned,
)
from lightning_rebasin.symmetry.permutations.labels import Label
from lightning_rebasin.symmetry.permutations.rules.base import (
    Context,
    LayoutNotCovered,
    Results,
    unknown,
)
from lightning_rebasin.symmetry.permutations.rules.lookups import (
    LOOKED_UP,
    first_place,
    indexed_dims,
    is_mask,
)
from lightning_rebasin.symmetry.permutations.rules.operation import Operation
from lightning_rebasin.symmetry.permutations.rules.pointwise import broadcast
from lightning_rebasin.symmetry.permutations.rules.registry import rule
from lightning_rebasin.symmetry.trace.tape import Ref

_INDEX = "it is an index"


@rule("gather")
def gather(ctx: Context, op: Operation) -> Results:
    """Positions of one dimension, chosen anew at every other position."""
    shape = op.out_shape
    if _is_number(op):
        return [ctx.use(op.label())]
    dim = op.dim(len(shape))
    base = _without_lookup(ctx, op.label(), shape, [dim])
    # The index holds the positions of the result, so that its own dimension stays.
    places = _without_lookup(ctx, op.label("index"), shape, [])
    met = ctx.meet(base, places)
    return [_with_positions(met, shape)]


@rule("scatter scatter_add scatter_reduce")
def scatter(ctx: Context, op: Operation) -> Results:
    """Writes at chosen positions of one dimension."""
    return [_written(ctx, op, "index", "src")]


@rule("index_add index_copy index_fill index_reduce")
def index_add(ctx: Context, op: Operation) -> Results:
    """Writes whole rows at chosen positions of one dimension."""
    ctx.pin_all([op["index"]], _INDEX)
    return [_written(ctx, op, "source")]


def _written(ctx: Context, op: Operation, *others: str) -> Label:
    """The label of a tensor after a write along one dimension, where only positions are left."""
    shape = op.out_shape
    if _is_number(op):
        return ctx.use(op.label())
    dim = op.dim(len(shape))
    operands = []
    for name in ("self", *others):
        # What is written may also be a Python number.
        if op.has_tensor(name):
            label = op.label(name)
            operands.append(_without_lookup(ctx, label, shape, [dim]))
    met = ctx.meet(*operands)
    return _with_positions(met, shape)


def _is_number(op: Operation) -> bool:
    """Whether base and result are single numbers, which have no position to look up."""
    return op.shape() == op.out_shape == ()


def _without_lookup(
    ctx: Context, label: Label, shape: Sequence[int], addressed: Sequence[int]
) -> Label:
    """A label with size 1 along the addressed dimensions and those that differ from the result, which are pinned."""
    if label.ndim != len(shape):
        raise LayoutNotCovered("a number where a vector is expected")
    dims = list(addressed)
    for dim, size in enumerate(label.shape):
        # Only the first positions of a longer tensor are read.
        if size != shape[dim] and dim not in dims:
            dims.append(dim)
    label = ctx.pin(label, dims, LOOKED_UP)
    for dim in dims:
        reduced = ctx.reduce(label, [dim])
        label = insert_dim(reduced, dim)
    return label


def _with_positions(label: Label, shape: Sequence[int]) -> Label:
    """A label of size 1 along some dimensions, which are positions in the result."""
    for dim, size in enumerate(shape):
        if not label.dims[dim]:
            label = insert_pinned(drop_dim(label, dim), dim, size)
    return label


@rule("index_put _index_put_impl _unsafe_index_put")
def index_put(ctx: Context, op: Operation) -> Results:
    """Writes at indexed positions: those dimensions are pinned, the others meet the values."""
    label = op.label()
    values = op.label("values")
    indexed = indexed_dims(op)
    refs = [op["indices"][dim] for dim in indexed]
    masked = any(is_mask(ctx, ref) for ref in refs)
    if masked and _is_pointwise(ctx, label, refs, values):
        # ``x[x < 0] = 0`` treats every position by itself.
        return [broadcast(ctx, op.tensors, label.shape)]
    ctx.pin_all(refs, _INDEX)
    if masked and len(refs) > 1:
        return unknown(ctx, op.node)

    consumed: list[int] = []
    for dim, ref in zip(indexed, refs, strict=True):
        consumed += _consumed(ctx, dim, ref)
    label = ctx.pin(label, consumed, LOOKED_UP)
    # The positions that a mask selects are in a row.
    places = 1 if masked else _longest(ctx, refs)
    letters = _letters_of_values(label, consumed, places)
    # The values broadcast to what is written.
    used = letters[len(letters) - values.ndim :]
    of_places = [
        dim for dim, letter in enumerate(used) if isinstance(letter, tuple)
    ]
    values = ctx.pin(values, of_places, LOOKED_UP)
    everything = range(label.ndim)
    return [ctx.join([(label, everything), (values, used)], everything)]


def _is_pointwise(
    ctx: Context, label: Label, masks: Sequence[Ref], values: Label
) -> bool:
    """Whether one mask covers the whole tensor and one value is written everywhere."""
    shapes = [ctx.shape(mask) for mask in masks]
    one_value = not any(values.dims)
    return shapes == [label.shape] and one_value


def _consumed(ctx: Context, dim: int, ref: Ref) -> range:
    """Dimensions that an index at ``dim`` addresses; a mask addresses several."""
    if not is_mask(ctx, ref):
        return range(dim, dim + 1)
    count = len(ctx.shape(ref))
    return range(dim, dim + count)


def _longest(ctx: Context, refs: Sequence[Ref]) -> int:
    """How many dimensions the indices have when broadcast to each other."""
    lengths = [len(ctx.shape(ref)) for ref in refs]
    return max(lengths, default=0)


def _letters_of_values(
    label: Label, consumed: Sequence[int], places: int
) -> list[Letter]:
    """Letters of what is written: numbers for dimensions of the base, pairs for those of the indices."""
    rest = label.dims_without(*consumed)
    first = first_place(consumed) if consumed else 0
    of_places = [("i", k) for k in range(places)]
    return [*rest[:first], *of_places, *rest[first:]]
