"""Concatenation, stacking, padding and writes into a part of a tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_rebasin.symmetry.permutations import labels
from lightning_rebasin.symmetry.permutations.elements import Elements
from lightning_rebasin.symmetry.permutations.labels import Label, Part
from lightning_rebasin.symmetry.permutations.rules.base import (
    Context,
    rule,
    unknown,
)
from lightning_rebasin.symmetry.trace.tape import Node, Ref


def concatenate(ctx: Context, pieces: Sequence[Label], dim: int) -> Label:
    """Pieces one after the other along ``dim``; they are joined along all other dimensions.

    Along ``dim`` the result has new elements, copies of the pieces' (one table for each piece, so that two copies of
    one piece stay apart).  Two 2×3 tensors with columns ``[2, 3, 4]`` and ``[5, 6, 7]``, put together along the
    columns, have six new elements ``[8 … 13]``: 8 is a copy of 2, 11 a copy of 5.  Slicing columns 3 … 5 gives back
    ``[5, 6, 7]``.
    """
    pieces = [
        labels.single_site(labels.canonical(p, ctx.store), dim, ctx.store)
        for p in pieces
    ]
    length = sum(piece.shape[dim] for piece in pieces)
    others = [d for d in range(len(pieces[0].dims)) if d != dim]
    joined = ctx.join(
        [(_without(piece, dim), others) for piece in pieces], others
    )
    joined = labels.insert_pinned(joined, dim, length)
    ordered = all(_is_ordered(piece, dim) for piece in pieces)
    if length == 1 or ordered:
        return joined
    return _derived(ctx, pieces, joined, dim)


def _is_ordered(piece: Label, dim: int) -> bool:
    """Whether nothing can move along a dimension of one site: it is pinned, or has one position.

    A constant piece beside ordered ones (an initial state of zeros) is free within itself.
    """
    if _parts_along(piece, dim):
        return False
    return piece.shape[dim] <= 1 or _is_pinned(piece, dim)


def _parts_along(piece: Label, dim: int) -> list[Part]:
    """Parts over the (one) site of a dimension."""
    sites = set(piece.dims[dim])
    return [part for part in piece.parts if sites.intersection(part.sites)]


def _is_pinned(piece: Label, dim: int) -> bool:
    return bool(piece.pinned.intersection(piece.dims[dim]))


def _without(label: Label, dim: int) -> Label:
    """The label without one dimension and the parts along it."""
    if not label.dims[dim]:
        return labels.drop_dim(label, dim)
    site = label.dims[dim][0]
    parts = tuple(part for part in label.parts if site not in part.sites)
    order = [sites for d, sites in enumerate(label.dims) if d != dim]
    last = labels.arrange(replace(label, parts=parts), [*order, (site,)])
    gone = len(last.sizes) - 1
    return Label(
        last.dims[:-1],
        last.sizes[:-1],
        last.parts,
        last.pinned - {gone},
        last.pending,
    )


@dataclass(frozen=True)
class _Run:
    """The positions of one piece along the dimension of a concatenation: axis ``axis`` of ``elements``."""

    elements: Elements
    axis: int


def _derived(
    ctx: Context, given: Sequence[Label], joined: Label, dim: int
) -> Label:
    """New elements along ``dim`` (and the sites that the pieces' elements depend on)."""
    pieces = [_with_sites_of(ctx, piece, joined, dim) for piece in given]
    site_maps = [_sites_in(piece, joined) for piece in pieces]
    site = joined.dims[dim][0]
    touched = {site}
    for piece, to_joined in zip(pieces, site_maps, strict=True):
        for part in _parts_along(piece, dim):
            touched.update(to_joined[s] for s in part.sites)
    span = sorted(touched)
    new = ctx.store.fresh(tuple(joined.sizes[s] for s in span))
    axis = span.index(site)
    start = 0
    for piece, to_joined in zip(pieces, site_maps, strict=True):
        stop = start + piece.shape[dim]
        run = _Run(Elements(new.ids.take(np.arange(start, stop), axis)), axis)
        for part in _parts_along(piece, dim):
            _copy_of(
                ctx, run, part, [span.index(to_joined[s]) for s in part.sites]
            )
        _settle(ctx, run, pinned=_is_pinned(piece, dim))
        start = stop
    parts = []
    for part in joined.parts:
        if set(part.sites) <= set(span):
            # What the pieces share beside ``dim`` lies above the new elements.
            ctx.store.relation(
                new,
                part.elements,
                tuple(map(span.index, part.sites)),
                defines=True,
            )
        else:
            parts.append(part)
    return replace(
        joined,
        parts=(*parts, Part(tuple(span), new)),
        pinned=joined.pinned - {site},
    )


def _copy_of(ctx: Context, run: _Run, part: Part, axes: list[int]) -> None:
    """The elements of a run are copies of a piece's: ``axes`` are those of the run at which the part lies."""
    order = sorted(range(len(axes)), key=axes.__getitem__)
    source = Elements(part.elements.ids.transpose(order))
    ctx.store.relation(run.elements, source, tuple(sorted(axes)), defines=True)


def _settle(ctx: Context, run: _Run, *, pinned: bool) -> None:
    """The run of a pinned piece keeps its order, that of any other stays together."""
    if pinned and run.elements.shape[run.axis] > 1:
        ctx.store.position(
            run.elements, run.axis, "its position matters", defines=True
        )
    else:
        ctx.store.mark(run.elements, defines=True)


def _with_sites_of(
    ctx: Context, piece: Label, joined: Label, dim: int
) -> Label:
    """Split or fuse the sites of a piece until it has those of ``joined`` in every other dimension."""
    for d in range(len(piece.dims)):
        wanted = [joined.sizes[site] for site in joined.dims[d]]
        present = [piece.sizes[site] for site in piece.dims[d]]
        if d != dim and present and present != wanted:
            piece = labels.single_site(piece, d, ctx.store)
            piece = labels.split_site(piece, piece.dims[d][0], wanted)
    return piece


def _sites_in(piece: Label, joined: Label) -> dict[int, int]:
    """For each site of a piece the one of ``joined`` that it has become."""
    found: dict[int, int] = {}
    for own, theirs in zip(piece.dims, joined.dims, strict=True):
        # A dimension of size 1 has no site in the piece.
        found.update(zip(own, theirs, strict=False))
    return found


@rule("cat concat concatenate")
def cat(ctx: Context, node: Node) -> list[Label]:
    """Concatenation, put together only when something other than a piece of it is used."""
    given: list[Ref] = node.arguments["tensors"]
    # Empty tensors of any shape may be among the pieces; they add nothing.
    refs = [ref for ref in given if 0 not in ctx.shape(ref)]
    if not refs:
        return [labels.fixed(ctx.out_shape(node))]
    dim = node.arguments["dim"] % len(ctx.shape(refs[0]))
    pieces = []
    start = 0
    for ref in refs:
        stop = start + ctx.shape(ref)[dim]
        pieces.append((start, stop, ref))
        start = stop
    ctx.pieces[node.outputs[0]] = (dim, pieces)
    ctx.known[node.outputs[0]] = lambda: concatenate(
        ctx, [ctx.label(ref) for ref in refs], dim
    )
    return []


@rule("stack")
def stack(ctx: Context, node: Node) -> list[Label]:
    """A new dimension; where the pieces have different elements, the result's depend on the new dimension."""
    refs: list[Ref] = node.arguments["tensors"]
    pieces = [ctx.label(ref) for ref in refs]
    dim = node.arguments["dim"] % (len(pieces[0].dims) + 1)
    return [stack_labels(ctx, pieces, dim)]


def stack_labels(ctx: Context, pieces: list[Label], dim: int) -> Label:
    """Pieces side by side along a new dimension.

    Two 2×3 tensors with columns ``[2, 3, 4]`` and ``[5, 6, 7]`` stacked along a new last dimension: rows that are the
    same in both stay as they are; the columns become new elements ``[[8, 9], [10, 11], [12, 13]]`` over the sites
    (column, place in the stack), where 8 is a copy of 2 and 9 a copy of 5.
    """
    part_sites = {part.sites for piece in pieces for part in piece.parts}
    if not _stackable(pieces, part_sites):
        return concatenate(
            ctx, [labels.insert_dim(piece, dim) for piece in pieces], dim
        )
    for piece in pieces:
        ctx.use(piece)
    first, number = pieces[0], len(pieces[0].sizes)
    pinned = frozenset().union(*(piece.pinned for piece in pieces))
    parts = []
    for sites in sorted(part_sites):
        own = [_over(piece, sites) for piece in pieces]
        keys = {None if elements is None else elements.key for elements in own}
        if len(keys) == 1 and own[0] is not None:
            parts.append(Part(sites, own[0]))
        else:
            parts.append(_stacked_part(ctx, sites, own, first, pinned))
    dims = [*first.dims[:dim], (number,), *first.dims[dim:]]
    sizes = (*first.sizes, len(pieces))
    return labels.arrange(
        Label(tuple(dims), sizes, tuple(parts), pinned | {number}), dims
    )


def _stackable(pieces: list[Label], part_sites: set[tuple[int, ...]]) -> bool:
    """Whether elements of the stack may depend on the new dimension: same sites, but not the same elements."""
    layouts = {(piece.dims, piece.sizes) for piece in pieces}
    if len(layouts) > 1 or len(pieces) == 1:
        return False
    every_site = [site for sites in part_sites for site in sites]
    if len(every_site) != len(set(every_site)):
        return False
    for sites in part_sites:
        found = [_over(piece, sites) for piece in pieces]
        if (
            len({elements.key for elements in found if elements is not None})
            > 1
        ):
            return True
    return False


def _over(piece: Label, sites: tuple[int, ...]) -> Elements | None:
    """The elements of a label over exactly these sites."""
    return next(
        (part.elements for part in piece.parts if part.sites == sites), None
    )


def _stacked_part(
    ctx: Context,
    sites: tuple[int, ...],
    own: Sequence[Elements | None],
    first: Label,
    pinned: frozenset[int],
) -> Part:
    """New elements over some sites and the place in the stack, copies of those of each piece."""
    new = ctx.store.fresh((*(first.sizes[site] for site in sites), len(own)))
    for place, elements in enumerate(own):
        run = Elements(new.ids[..., place])
        if elements is None:
            ctx.store.mark(run, defines=True)
        else:
            ctx.store.relation(
                run, elements, tuple(range(len(sites))), defines=True
            )
    for site in sites:
        if site in pinned:
            ctx.store.position(
                new, sites.index(site), "its position matters", defines=True
            )
    ctx.store.position(new, len(sites), "its place in a stack", defines=True)
    return Part((*sites, len(first.sizes)), new)


@rule("constant_pad_nd")
def pad(ctx: Context, node: Node) -> list[Label]:
    """Constant padding: new positions that are free among themselves; negative padding cuts."""
    label = ctx.label(node.arguments["self"])
    pads = node.arguments["pad"]
    for k in range(len(pads) // 2):
        # Pairs begin with the last dimension.
        dim, (low, high) = len(label.dims) - 1 - k, pads[2 * k : 2 * k + 2]
        size = label.shape[dim]
        if low < 0 or high < 0:
            kept = np.arange(max(-low, 0), size - max(-high, 0))
            label = labels.take(label, dim, kept, ctx.store)
        if low > 0 or high > 0:
            label = _padded(ctx, label, dim, max(low, 0), max(high, 0))
    return [label]


def _padded(
    ctx: Context, label: Label, dim: int, low: int, high: int
) -> Label:
    size = label.shape[dim]
    ordered = bool(label.dims[dim]) and label.dims[dim][0] in label.pinned
    shape = [*label.shape[:dim], low + high, *label.shape[dim + 1 :]]
    blank = labels.plain(shape, [dim] if ordered else [])
    # Both ends hold the same constant, so they are one piece that is then put on either side.
    inside = np.arange(size) + low + high
    order = np.concatenate(
        [np.arange(low), inside, np.arange(low, low + high)]
    )
    return labels.take(
        concatenate(ctx, [blank, label], dim), dim, order, ctx.store
    )


#: Views that only look at the same positions in another shape.
_RESHAPING = (
    "view",
    "alias",
    "detach",
    "unsqueeze",
    "squeeze",
    "_reshape_alias",
    "reshape",
)


@dataclass(frozen=True)
class _View:
    """A view operation to be undone: its name, its arguments but the base, and which of its results was written."""

    name: str
    arguments: Mapping[str, Any]
    output: int = 0


@rule("slice_scatter select_scatter")
def scatter_into(ctx: Context, node: Node) -> list[Label]:
    """A copy of ``self`` with a slice replaced."""
    view = _View("slice" if "slice" in node.op else "select", node.arguments)
    written = _write(
        ctx,
        view,
        ctx.label(node.arguments["self"]),
        ctx.label(node.arguments["src"]),
    )
    return unknown(ctx, node) if written is None else [written]


@rule("tape.write_back")
def write_back(ctx: Context, node: Node) -> list[Label]:
    """What lies behind a view after a write into the view."""
    given = node.arguments
    view = _View(
        given["view"].removeprefix("aten."),
        given["view_arguments"],
        given["output"],
    )
    written = _write(
        ctx, view, ctx.label(given["base"]), ctx.label(given["piece"])
    )
    return unknown(ctx, node) if written is None else [written]


def _write(
    ctx: Context, view: _View, base: Label, piece: Label
) -> Label | None:
    """Undo one view operation; ``None`` if it is not understood."""
    if view.name in _RESHAPING:
        return labels.view(piece, base.shape, ctx.store)
    if view.name in ("t", "transpose", "permute"):
        return labels.permute(piece, _inverse_order(view, len(piece.dims)))
    if view.name in ("slice", "select", "unbind"):
        return _write_slice(ctx, view, base, piece)
    return None


def _inverse_order(view: _View, ndim: int) -> list[int]:
    given = view.arguments
    if view.name == "permute":
        forward = [int(d) % ndim for d in given["dims"]]
        return [forward.index(d) for d in range(ndim)]
    order = list(range(ndim))
    if view.name == "t":
        return order[::-1]
    a, b = int(given["dim0"]) % ndim, int(given["dim1"]) % ndim
    order[a], order[b] = b, a
    return order


def _write_slice(
    ctx: Context, view: _View, base: Label, piece: Label
) -> Label | None:
    """Replace some positions of one dimension: the rest of the base is put around the piece."""
    dim = int(view.arguments["dim"] or 0) % len(base.dims)
    size = base.shape[dim]
    rows = _rows_of(view, size)
    if view.name != "slice":
        # what was selected has lost its dimension
        piece = labels.insert_dim(piece, dim)
    if len(rows) == size:
        return piece
    if not len(rows):
        return base

    def rest(positions: NDArray[np.int64]) -> Label:
        return labels.take(base, dim, positions, ctx.store)

    if bool((np.diff(rows) != 1).any()):
        # Every other position, say: put the piece behind the rest, then everything in its place.
        others = np.setdiff1d(np.arange(size), rows)
        apart = concatenate(ctx, [rest(others), piece], dim)
        order = np.argsort(np.concatenate([others, rows]))
        return labels.take(apart, dim, order, ctx.store)
    start, stop = int(rows[0]), int(rows[-1]) + 1
    before = [rest(np.arange(start))] if start else []
    after = [rest(np.arange(stop, size))] if stop < size else []
    return concatenate(ctx, [*before, piece, *after], dim)


def _rows_of(view: _View, size: int) -> NDArray[np.int64]:
    """The positions of a dimension that a view looks at."""
    given = view.arguments
    if view.name == "slice":
        return np.arange(size)[given["start"] : given["end"] : given["step"]]
    index = (
        int(given["index"]) % size if view.name == "select" else view.output
    )
    return np.arange(index, index + 1)
