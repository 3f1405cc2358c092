"""Gathers and scatters: the indexed dimension is pinned unless the index is a constant of the model."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_rebasin.symmetry.permutations import labels
from lightning_rebasin.symmetry.permutations.labels import Label
from lightning_rebasin.symmetry.permutations.rules.base import (
    Context,
    dims_of,
    rule,
    unknown,
)
from lightning_rebasin.symmetry.permutations.rules.pointwise import broadcast
from lightning_rebasin.symmetry.trace.tape import Node, Ref, references

_LOOKED_UP = "it is looked up by index"


@rule("embedding")
def embedding(ctx: Context, node: Node) -> list[Label]:
    """Rows of a table."""
    return [
        _lookup(
            ctx,
            ctx.label(node.arguments["weight"]),
            0,
            node.arguments["indices"],
        )
    ]


@rule("index_select")
def index_select(ctx: Context, node: Node) -> list[Label]:
    """Positions of one dimension."""
    label = ctx.label(node.arguments["self"])
    dim = node.arguments["dim"] % max(len(label.dims), 1)
    index = ctx.array(node.arguments["index"])
    if index is not None:
        return [
            labels.take(
                label, dim, index.reshape(-1).astype(np.int64), ctx.store
            )
        ]
    return [_lookup(ctx, label, dim, node.arguments["index"])]


def _lookup(ctx: Context, label: Label, dim: int, index: Ref) -> Label:
    """Replace ``dim`` by the dimensions of ``index``."""
    rows = _known_rows(ctx, index, label.shape[dim])
    if rows is not None and not ctx.tape.values[index.value].mask:
        return labels.take(label, dim, rows, ctx.store)
    label = ctx.reduce(ctx.pin(label, [dim], _LOOKED_UP), [dim])
    places = ctx.label(index)
    letters: list[Any] = [("i", k) for k in range(len(places.dims))]
    rest: list[Any] = list(range(len(label.dims)))
    return ctx.join(
        [(label, rest), (places, letters)],
        [*rest[:dim], *letters, *rest[dim:]],
    )


def _known_rows(
    ctx: Context, index: Ref, size: int
) -> NDArray[np.int64] | None:
    """The positions that a constant index chooses, if it is one-dimensional and chooses each at most once."""
    array = ctx.array(index)
    if array is None or array.ndim != 1:
        return None
    if array.dtype == np.bool_:
        rows = np.flatnonzero(array)
    else:
        rows = array.astype(np.int64) % size
    # The index itself must not repeat: -1 and size - 1 would be one row twice.
    distinct = len(np.unique(array)) == len(array) or array.dtype == np.bool_
    return rows if distinct else None


@rule("index _unsafe_index")
def index(ctx: Context, node: Node) -> list[Label]:
    """Advanced indexing."""
    label, indices = (
        ctx.label(node.arguments["self"]),
        list(node.arguments["indices"]),
    )
    indexed = [d for d, i in enumerate(indices) if isinstance(i, Ref)]
    if len(indexed) == 1:
        (dim,) = indexed
        rows = _known_rows(ctx, indices[dim], label.shape[dim])
        if (
            rows is not None
            and len(rows)
            and len(np.unique(rows)) == len(rows)
        ):
            return [labels.take(label, dim, rows, ctx.store)]
    if any(_is_mask(ctx, indices[dim]) for dim in indexed):
        return _masked(ctx, node, label, indices)
    places = [ctx.label(indices[dim]) for dim in indexed]
    # The indices broadcast against each other, so their letters count from the right.
    ndim = max(len(place.dims) for place in places)
    letters: list[Any] = [("i", ndim - k) for k in range(ndim)]
    label = ctx.reduce(ctx.pin(label, indexed, _LOOKED_UP), indexed)
    rest: list[Any] = list(range(len(label.dims)))
    # x[:, i, j] puts the new dimensions where i and j stand, x[i, :, j] in front.
    first = indexed[0] if _adjacent(indexed) else 0
    operands: list[tuple[Label, list[Any]]] = [(label, rest)]
    for place in places:
        operands.append((place, letters[ndim - len(place.dims) :]))
    result = ctx.join(operands, [*rest[:first], *letters, *rest[first:]])
    return [labels.expand(result, ctx.out_shape(node))]


def _adjacent(dims: list[int]) -> bool:
    return dims == list(range(dims[0], dims[0] + len(dims)))


def _is_mask(ctx: Context, ref: Ref) -> bool:
    value = ctx.tape.values[ref.value]
    return value.integral and value.mask


def _masked(
    ctx: Context, node: Node, label: Label, indices: list[Any]
) -> list[Label]:
    """A boolean mask over leading dimensions: they are pinned and become one."""
    refs = [i for i in indices if isinstance(i, Ref)]
    first = next(d for d, i in enumerate(indices) if isinstance(i, Ref))
    if len(refs) != 1:
        return unknown(ctx, node)
    count = len(ctx.shape(refs[0]))
    ctx.pin_all(refs, "a mask selects positions")
    consumed = list(range(first, first + count))
    label = ctx.reduce(
        ctx.pin(label, consumed, "a mask selects positions"), consumed
    )
    shape = ctx.out_shape(node)
    return [
        labels.fixed(shape)
        if 0 in shape
        else labels.insert_pinned(label, first, shape[first])
    ]


@rule("gather take_along_dim")
def gather(ctx: Context, node: Node) -> list[Label]:
    """Positions of one dimension, chosen anew at every other position."""
    given = node.arguments
    shape = ctx.out_shape(node)
    return [
        _pointwise_at(
            ctx,
            given["dim"],
            given["self"],
            [given["index"]],
            shape,
            keep=False,
        )
    ]


@rule("scatter scatter_add scatter_reduce")
def scatter(ctx: Context, node: Node) -> list[Label]:
    """Writes at chosen positions of one dimension."""
    given = node.arguments
    refs = [
        given[name]
        for name in ("index", "src")
        if isinstance(given.get(name), Ref)
    ]
    return [
        _pointwise_at(
            ctx,
            given["dim"],
            given["self"],
            refs,
            ctx.out_shape(node),
            keep=True,
        )
    ]


@rule("index_add index_copy index_fill index_reduce")
def index_add(ctx: Context, node: Node) -> list[Label]:
    """Writes whole rows at chosen positions of one dimension."""
    given = node.arguments
    ctx.pin_all([given["index"]], "it is an index")
    source = given.get("source")
    refs = [source] if isinstance(source, Ref) else []
    return [
        _pointwise_at(
            ctx,
            given["dim"],
            given["self"],
            refs,
            ctx.out_shape(node),
            keep=True,
        )
    ]


def _pointwise_at(
    ctx: Context,
    dim: int,
    base: Ref,
    others: list[Ref],
    shape: tuple[int, ...],
    *,
    keep: bool,
) -> Label:
    """Join ``base`` and ``others`` along every dimension but ``dim``, which is pinned.

    Args:
        ctx: The pass.
        dim: The dimension that is indexed.
        base: What is read or written.
        others: Index and values.
        shape: Of the result.
        keep: Whether the result is the base with something written into it.
    """
    if not shape:
        return ctx.use(ctx.label(base))
    dim %= len(shape)
    letters: list[Any] = list(range(len(shape)))
    operands = []
    for ref in (base, *others):
        label = ctx.label(ref)
        # gather may read fewer rows than there are
        cut = [
            d
            for d, size in enumerate(label.shape)
            if size != shape[d] and d != dim
        ]
        gone = [dim, *cut] if keep or ref is base else cut
        label = ctx.pin(label, gone, _LOOKED_UP)
        for d in gone:
            label = labels.insert_dim(ctx.reduce(label, [d]), d)
        operands.append((label, letters))
    result = ctx.join(operands, letters)
    for d, size in enumerate(shape):
        if not result.dims[d] and size > 1:
            result = labels.insert_pinned(labels.drop_dim(result, d), d, size)
    return result


@rule("index_put _index_put_impl _unsafe_index_put")
def index_put(ctx: Context, node: Node) -> list[Label]:
    """Writes at indexed positions: those dimensions are pinned, the others meet the values."""
    given = node.arguments
    label, values = ctx.label(given["self"]), ctx.label(given["values"])
    indices = list(given["indices"])
    indexed = [d for d, i in enumerate(indices) if isinstance(i, Ref)]
    refs = [indices[d] for d in indexed]
    masks = [ref for ref in refs if _is_mask(ctx, ref)]
    if (
        masks
        and len(refs) == 1
        and ctx.shape(refs[0]) == label.shape
        and not any(values.dims)
    ):
        # x[x < 0] = 0 is a pointwise operation
        return [
            broadcast(
                ctx, [given["self"], refs[0], given["values"]], label.shape
            )
        ]
    ctx.pin_all(refs, "it is an index")
    if masks and len(refs) > 1:
        return unknown(ctx, node)
    consumed: list[int] = []
    for d in indexed:
        # a mask of two dimensions stands for two
        consumed += range(d, d + _consumes(ctx, indices[d]))
    label = ctx.pin(label, consumed, _LOOKED_UP)
    letters = _put_letters(ctx, len(label.dims), consumed, refs)
    used = letters[len(letters) - len(values.dims) :]
    chosen = [k for k, letter in enumerate(used) if isinstance(letter, tuple)]
    values = ctx.pin(values, chosen, _LOOKED_UP)
    everything: list[Any] = list(range(len(label.dims)))
    return [ctx.join([(label, everything), (values, used)], everything)]


def _put_letters(
    ctx: Context, ndim: int, consumed: list[int], refs: list[Ref]
) -> list[Any]:
    """Letters of the values of ``x[indices] = values``: ``("i", k)`` where they run along the indices."""
    places = max((len(ctx.shape(ref)) for ref in refs), default=0)
    if any(_is_mask(ctx, ref) for ref in refs):
        # whatever its dimensions, a mask lists what it selects
        places = 1
    rest = [d for d in range(ndim) if d not in consumed]
    first = 0
    if consumed and _adjacent(consumed):
        first = sum(d < consumed[0] for d in rest)
    return [*rest[:first], *(("i", k) for k in range(places)), *rest[first:]]


def _consumes(ctx: Context, ref: Ref) -> int:
    return len(ctx.shape(ref)) if _is_mask(ctx, ref) else 1


@rule(
    "tril triu diagonal diag_embed diag _linalg_svd linalg_inv_ex cholesky linalg_cholesky_ex"
)
def square(ctx: Context, node: Node) -> list[Label]:
    """Both of the last two dimensions are positions."""
    given = node.arguments
    label = ctx.label(given["self"] if "self" in given else given["A"])
    dims = [given["dim1"], given["dim2"]] if "dim1" in given else [-2, -1]
    label = ctx.pin(
        label,
        dims_of(dims, len(label.dims)),
        f"{node.op} depends on positions",
    )
    if node.op in ("aten.tril", "aten.triu"):
        return [label]
    return unknown(ctx, node)


@rule("im2col")
def im2col(ctx: Context, node: Node) -> list[Label]:
    """Patches of an image: channels become (channel, kernel position), positions become one dimension."""
    label = ctx.label(node.arguments["self"])
    ndim = len(label.dims)
    image = [ndim - 2, ndim - 1]
    channels = label.shape[ndim - 3]
    label = ctx.reduce(ctx.pin(label, image, "position in the image"), image)
    shape = ctx.out_shape(node)
    label = labels.insert_pinned(label, ndim - 2, shape[-2] // channels)
    label = labels.insert_pinned(label, ndim - 1, shape[-1])
    return [labels.view(label, shape, ctx.store)]


@rule("col2im")
def col2im(ctx: Context, node: Node) -> list[Label]:
    """Patches put together to an image."""
    label, shape = ctx.label(node.arguments["self"]), ctx.out_shape(node)
    lead, channels = shape[:-3], shape[-3]
    old = label.shape
    label = labels.view(
        label, (*lead, channels, old[-2] // channels, old[-1]), ctx.store
    )
    last = [len(lead) + 1, len(lead) + 2]
    label = ctx.reduce(ctx.pin(label, last, "position in the image"), last)
    label = labels.insert_pinned(label, len(lead) + 1, shape[-2])
    return [labels.insert_pinned(label, len(lead) + 2, shape[-1])]


@rule("_local_scalar_dense is_nonzero equal item")
def to_python(ctx: Context, node: Node) -> list[Label]:
    """A number that Python code uses."""
    ctx.pin_all(
        list(references(node.arguments)), "Python code reads its value"
    )
    return []
