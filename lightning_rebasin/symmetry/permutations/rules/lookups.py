"""Lookups: positions of a dimension read by index.

If the index is computed at run time, the positions mean something and are pinned: the rows of an embedding are tokens.
If it is a constant of the model that reads every position at most once (a shuffle, a window), the lookup is a slice.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lightning_rebasin.symmetry.permutations.align import Letter
from lightning_rebasin.symmetry.permutations.elements import IntArray
from lightning_rebasin.symmetry.permutations.label_dims import (
    expand,
    insert_pinned,
)
from lightning_rebasin.symmetry.permutations.labels import Label, fixed
from lightning_rebasin.symmetry.permutations.rules.base import (
    Context,
    LayoutNotCovered,
    Results,
    unknown,
)
from lightning_rebasin.symmetry.permutations.rules.operation import Operation
from lightning_rebasin.symmetry.permutations.rules.registry import rule
from lightning_rebasin.symmetry.trace.tape import Ref

LOOKED_UP = "it is looked up by index"
_MASKED = "a mask selects positions"


@rule("embedding")
def embedding(ctx: Context, op: Operation) -> Results:
    """Rows of a table."""
    table = op.label("weight")
    return [_lookup(ctx, table, 0, op["indices"])]


@rule("index_select")
def index_select(ctx: Context, op: Operation) -> Results:
    """Positions of one dimension."""
    label = op.label()
    if label.ndim == 0:
        raise LayoutNotCovered("index_select of a number")
    dim = op.dim(label.ndim)
    ref = op["index"]
    constant = ctx.value(ref).array
    if constant is None:
        return [_lookup(ctx, label, dim, ref)]
    # Here a position may be read more than once: it is copied.
    rows = constant.reshape(-1).astype(np.int64)
    return [ctx.take(label, dim, rows)]


def _lookup(ctx: Context, label: Label, dim: int, index: Ref) -> Label:
    """Replace ``dim`` by the dimensions of ``index``.

    Of a 2×3 table with an index of shape (5, 4), ``dim`` 0 becomes 5×4: the result is 5×4×3.
    """
    size = label.shape[dim]
    rows = _constant_rows(ctx, index, size)
    if rows is not None:
        return ctx.take(label, dim, rows)
    # Which row is read depends on the data, so no row may move; the other dimensions pass through.
    label = ctx.pin_and_reduce(label, [dim], LOOKED_UP)
    places = ctx.label(index)
    of_places = _index_letters(places.ndim)
    rest: list[Letter] = list(range(label.ndim))
    out = [*rest[:dim], *of_places, *rest[dim:]]
    return ctx.join([(label, rest), (places, of_places)], out)


def _index_letters(ndim: int) -> list[Letter]:
    """Letters for the dimensions of an index, counted from the right because indices broadcast to each other."""
    return [("i", k) for k in range(ndim, 0, -1)]


@rule("index _unsafe_index")
def index(ctx: Context, op: Operation) -> Results:
    """Advanced indexing."""
    label = op.label()
    indexed = indexed_dims(op)
    refs = [op["indices"][dim] for dim in indexed]
    if len(refs) == 1:
        dim = indexed[0]
        size = label.shape[dim]
        rows = _constant_rows(ctx, refs[0], size)
        if rows is not None:
            _check_count(len(rows), op.out_shape[dim])
            return [ctx.take(label, dim, rows)]
    masks = [ref for ref in refs if is_mask(ctx, ref)]
    if masks:
        return _masked(ctx, op, label)
    places = [ctx.label(ref) for ref in refs]
    label = ctx.pin_and_reduce(label, indexed, LOOKED_UP)
    # ``x[:, i, j]`` of a 2×3×4 tensor with indices of 5 is the join "a, i, i -> ai": 2×5.
    rest: list[Letter] = list(range(label.ndim))
    operands = [(label, rest)]
    operands += [(place, _index_letters(place.ndim)) for place in places]
    longest = max(place.ndim for place in places)
    first = first_place(indexed)
    of_places = _index_letters(longest)
    out = [*rest[:first], *of_places, *rest[first:]]
    _check_count(len(out), len(op.out_shape))
    result = ctx.join(operands, out)
    return [expand(result, op.out_shape)]


def _check_count(expected: int, found: int) -> None:
    """Refuse an index that torch counts in another way: one of bytes is a mask, which no shape shows."""
    if expected != found:
        raise LayoutNotCovered("a mask of bytes")


def indexed_dims(op: Operation) -> list[int]:
    """Dimensions of an advanced index that hold a tensor."""
    indices = op["indices"]
    return [dim for dim, given in enumerate(indices) if isinstance(given, Ref)]


def first_place(indexed: Sequence[int]) -> int:
    """Where the dimensions of the indices stand among those that are not indexed.

    Args:
        indexed: The indexed dimensions, ascending.

    Example:
        >>> first_place([1, 2]), first_place([1, 3])
        (1, 0)
    """
    first = indexed[0]
    stop = first + len(indexed)
    # So torch decides: in the place of neighbours, else in front.
    adjacent = indexed[-1] == stop - 1
    return first if adjacent else 0


def _constant_rows(ctx: Context, ref: Ref, size: int) -> IntArray | None:
    """Positions that a constant index of one dimension reads, if it reads each at most once."""
    constant = ctx.value(ref).array
    if constant is None or constant.ndim != 1:
        return None
    # Negative positions count from the end.
    rows = constant.astype(np.int64) % size
    if constant.dtype == np.bool_:
        rows = np.flatnonzero(constant)
    different = np.unique(rows)
    # Nothing was read, or something twice: not a slice.
    if len(rows) == 0 or len(different) < len(rows):
        return None
    return rows


def is_mask(ctx: Context, ref: Ref) -> bool:
    """Whether an index is a boolean mask, which indexes as many dimensions as it has."""
    value = ctx.value(ref)
    return value.integral and value.mask


def _masked(ctx: Context, op: Operation, label: Label) -> Results:
    """A boolean mask over leading dimensions: they are pinned and become one."""
    indexed = indexed_dims(op)
    if len(indexed) != 1:
        return unknown(ctx, op.node)
    first = indexed[0]
    mask = op["indices"][first]
    ctx.pin_all([mask], _MASKED)
    stop = first + len(ctx.shape(mask))
    label = ctx.pin_and_reduce(label, range(first, stop), _MASKED)
    shape = op.out_shape
    if 0 in shape:
        return [fixed(shape)]
    return [insert_pinned(label, first, shape[first])]


@rule("_local_scalar_dense is_nonzero equal item")
def to_python(ctx: Context, op: Operation) -> Results:
    """A number that Python code uses."""
    ctx.pin_all(op.tensors, "Python code reads its value")
    return []
