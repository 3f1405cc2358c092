"""Gathers and scatters: the indexed dimension is pinned unless the index is a constant of the model."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_rebasin.symmetry.permutations import labels
from lightning_rebasin.symmetry.permutations.labels import Label
from lightning_rebasin.symmetry.permutations.rules.base import Context, dims_of, rule, unknown
from lightning_rebasin.symmetry.permutations.rules.pointwise import broadcast
from lightning_rebasin.symmetry.trace.tape import Node, Ref, references


@rule("embedding")
def embedding(ctx: Context, node: Node) -> list[Label]:
    """Rows of a table."""
    return [_lookup(ctx, ctx.label(node.arguments["weight"]), 0, node.arguments["indices"])]


@rule("index_select")
def index_select(ctx: Context, node: Node) -> list[Label]:
    """Positions of one dimension."""
    label = ctx.label(node.arguments["self"])
    dim = node.arguments["dim"] % max(len(label.dims), 1)
    index = ctx.array(node.arguments["index"])
    if index is not None:
        return [labels.take(label, dim, index.reshape(-1).astype(np.int64), ctx.store)]
    return [_lookup(ctx, label, dim, node.arguments["index"])]


def _lookup(ctx: Context, label: Label, dim: int, index: Ref) -> Label:
    """Replace ``dim`` by the dimensions of ``index``."""
    array = ctx.array(index)
    if (
        array is not None
        and array.ndim == 1
        and len(np.unique(array)) == len(array)
        and array.dtype != np.bool_
    ):
        return labels.take(label, dim, _rows(array, label.shape[dim]), ctx.store)
    label = ctx.reduce(ctx.pin(label, [dim], "it is looked up by index"), [dim])
    places = ctx.label(index)
    letters: list[Any] = [("i", k) for k in range(len(places.dims))]
    rest: list[Any] = list(range(len(label.dims)))
    return ctx.merge([(label, rest), (places, letters)], [*rest[:dim], *letters, *rest[dim:]])


def _rows(array: NDArray[Any], size: int) -> NDArray[np.int64]:
    return array.astype(np.int64) % size


@rule("index _unsafe_index")
def index(ctx: Context, node: Node) -> list[Label]:
    """Advanced indexing."""
    label, indices = ctx.label(node.arguments["self"]), list(node.arguments["indices"])
    indexed = [d for d, i in enumerate(indices) if isinstance(i, Ref)]
    if len(indexed) == 1:
        array = ctx.array(indices[indexed[0]])
        if array is not None and array.ndim == 1:
            rows = (
                np.flatnonzero(array)
                if array.dtype == np.bool_
                else _rows(array, label.shape[indexed[0]])
            )
            if len(rows) and len(np.unique(rows)) == len(rows):
                return [labels.take(label, indexed[0], rows, ctx.store)]
    if any(_is_mask(ctx, indices[d]) for d in indexed):
        return _masked(ctx, node, label, indices)
    places = [ctx.label(indices[d]) for d in indexed]
    ndim = max(len(p.dims) for p in places)
    letters: list[Any] = [("i", ndim - k) for k in range(ndim)]
    label = ctx.reduce(ctx.pin(label, indexed, "it is looked up by index"), indexed)
    rest: list[Any] = list(range(len(label.dims)))
    adjacent = indexed == list(range(indexed[0], indexed[0] + len(indexed)))
    first = indexed[0] if adjacent else 0
    operands: list[tuple[Label, list[Any]]] = [(label, rest)]
    operands += [(p, letters[ndim - len(p.dims) :]) for p in places]
    result = ctx.merge(operands, [*rest[:first], *letters, *rest[first:]])
    return [labels.expand(result, ctx.out_shape(node))]


def _is_mask(ctx: Context, ref: Ref) -> bool:
    value = ctx.tape.values[ref.value]
    return value.integral and value.mask


def _masked(ctx: Context, node: Node, label: Label, indices: list[Any]) -> list[Label]:
    """A boolean mask over leading dimensions: they are pinned and become one."""
    refs = [i for i in indices if isinstance(i, Ref)]
    first = next(d for d, i in enumerate(indices) if isinstance(i, Ref))
    if len(refs) != 1:
        return unknown(ctx, node)
    count = len(ctx.shape(refs[0]))
    ctx.pin_all(refs, "a mask selects positions")
    consumed = list(range(first, first + count))
    label = ctx.reduce(ctx.pin(label, consumed, "a mask selects positions"), consumed)
    shape = ctx.out_shape(node)
    return [labels.fixed(shape) if 0 in shape else labels.insert_pinned(label, first, shape[first])]


@rule("gather take_along_dim")
def gather(ctx: Context, node: Node) -> list[Label]:
    """Positions of one dimension, chosen anew at every other position."""
    given = node.arguments
    return [
        _pointwise_at(
            ctx, given["dim"], given["self"], [given["index"]], ctx.out_shape(node), keep=False
        )
    ]


@rule("scatter scatter_add scatter_reduce")
def scatter(ctx: Context, node: Node) -> list[Label]:
    """Writes at chosen positions of one dimension."""
    given = node.arguments
    refs = [given[name] for name in ("index", "src") if isinstance(given.get(name), Ref)]
    return [_pointwise_at(ctx, given["dim"], given["self"], refs, ctx.out_shape(node), keep=True)]


@rule("index_add index_copy index_fill index_reduce")
def index_add(ctx: Context, node: Node) -> list[Label]:
    """Writes whole rows at chosen positions of one dimension."""
    given = node.arguments
    ctx.pin_all([given["index"]], "it is an index")
    refs = [given[name] for name in ("source",) if isinstance(given.get(name), Ref)]
    return [_pointwise_at(ctx, given["dim"], given["self"], refs, ctx.out_shape(node), keep=True)]


def _pointwise_at(
    ctx: Context, dim: int, base: Ref, others: list[Ref], shape: tuple[int, ...], *, keep: bool
) -> Label:
    """Join ``base`` and ``others`` along every dimension but ``dim``, which is pinned."""
    if not shape:
        return ctx.use(ctx.label(base))
    dim %= len(shape)
    operands = []
    letters: list[Any] = list(range(len(shape)))
    for ref in (base, *others):
        label = ctx.label(ref)
        differs = [d for d, n in enumerate(label.shape) if n != shape[d] and d != dim]
        label = ctx.pin(
            label, [dim, *differs] if keep or ref is base else differs, "it is looked up by index"
        )
        for d in (dim, *differs) if ref is base or keep else differs:
            label = labels.insert_dim(ctx.reduce(label, [d]), d)
        operands.append((label, letters))
    result = ctx.merge(operands, letters)
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
    if (
        len(refs) == 1
        and ctx.shape(refs[0]) == label.shape
        and _is_mask(ctx, refs[0])
        and not any(values.dims)
    ):
        return [
            broadcast(ctx, [given["self"], refs[0], given["values"]], label.shape)
        ]  # x[x < 0] = 0
    ctx.pin_all(refs, "it is an index")
    consumed = sorted({d + k for d in indexed for k in range(_consumes(ctx, indices[d]))})
    if any(_is_mask(ctx, r) for r in refs) and len(refs) > 1:
        return unknown(ctx, node)
    label = ctx.pin(label, consumed, "it is looked up by index")
    places = max((len(ctx.shape(r)) for r in refs), default=0)
    places = 1 if any(_is_mask(ctx, r) for r in refs) else places
    rest = [d for d in range(len(label.dims)) if d not in consumed]
    adjacent = (
        consumed == list(range(consumed[0], consumed[0] + len(consumed))) if consumed else True
    )
    first = sum(d < consumed[0] for d in rest) if adjacent and consumed else 0
    letters = [*rest[:first], *(("i", k) for k in range(places)), *rest[first:]]
    used = letters[len(letters) - len(values.dims) :]
    values = ctx.pin(
        values, [k for k, x in enumerate(used) if isinstance(x, tuple)], "it is looked up by index"
    )
    everything: list[Any] = list(range(len(label.dims)))
    return [ctx.merge([(label, everything), (values, used)], everything)]


def _consumes(ctx: Context, ref: Ref) -> int:
    return len(ctx.shape(ref)) if _is_mask(ctx, ref) else 1


@rule("tril triu diagonal diag_embed diag _linalg_svd linalg_inv_ex cholesky linalg_cholesky_ex")
def square(ctx: Context, node: Node) -> list[Label]:
    """Both of the last two dimensions are positions."""
    given = node.arguments
    ref = given["self"] if "self" in given else given["A"]
    ndim = len(ctx.shape(ref))
    dims = [-2, -1] if "dim1" not in given else [given["dim1"], given["dim2"]]
    label = ctx.pin(ctx.label(ref), dims_of(dims, ndim), f"{node.op} depends on positions")
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
    label = labels.view(label, (*lead, channels, old[-2] // channels, old[-1]), ctx.store)
    last = [len(lead) + 1, len(lead) + 2]
    label = ctx.reduce(ctx.pin(label, last, "position in the image"), last)
    return [
        labels.insert_pinned(
            labels.insert_pinned(label, len(lead) + 1, shape[-2]), len(lead) + 2, shape[-1]
        )
    ]


@rule("_local_scalar_dense is_nonzero equal item")
def to_python(ctx: Context, node: Node) -> list[Label]:
    """A number that Python code uses."""
    ctx.pin_all(list(references(node.arguments)), "Python code reads its value")
    return []
