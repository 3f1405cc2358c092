"""Concatenation, stacking, padding and writes into a part of a tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lightning_rebasin.symmetry.permutations import labels
from lightning_rebasin.symmetry.permutations.elements import Elements
from lightning_rebasin.symmetry.permutations.labels import Label, Part
from lightning_rebasin.symmetry.permutations.rules.base import Context, rule, unknown
from lightning_rebasin.symmetry.trace.tape import Node, Ref


def concatenate(ctx: Context, pieces: Sequence[Label], dim: int) -> Label:
    """Pieces one after the other along ``dim``; they are joined along all other dimensions.

    Along ``dim`` the result has new elements, copies of the pieces' (one table for each piece, so that two copies of
    one piece stay apart).
    """
    pieces = [labels.single_site(labels.canonical(p, ctx.store), dim, ctx.store) for p in pieces]
    sizes = [p.shape[dim] for p in pieces]
    others = [d for d in range(len(pieces[0].dims)) if d != dim]
    joined = ctx.merge([(_without(p, dim), others) for p in pieces], others)
    joined = labels.insert_pinned(joined, dim, sum(sizes))
    moving = [[q for q in p.parts if p.dims[dim] and p.dims[dim][0] in q.sites] for p in pieces]
    # A constant piece beside ordered ones (an initial state of zeros) is free within itself.
    loose = [
        size > 1 and not (p.dims[dim] and p.dims[dim][0] in p.pinned)
        for p, size in zip(pieces, sizes, strict=True)
    ]
    if sum(sizes) == 1 or not (any(moving) or any(loose)):
        return joined
    return _derived(ctx, pieces, joined, dim)


def _without(label: Label, dim: int) -> Label:
    """The label without one dimension and the parts along it."""
    if not label.dims[dim]:
        return labels.drop_dim(label, dim)
    site = label.dims[dim][0]
    parts = tuple(p for p in label.parts if site not in p.sites)
    order = [sites for d, sites in enumerate(label.dims) if d != dim]
    last = labels.arrange(replace(label, parts=parts), [*order, (site,)])
    gone = len(last.sizes) - 1
    return Label(last.dims[:-1], last.sizes[:-1], last.parts, last.pinned - {gone}, last.pending)


def _derived(ctx: Context, pieces: Sequence[Label], joined: Label, dim: int) -> Label:
    """New elements along ``dim`` (and the sites that the pieces' elements depend on)."""
    sizes = [p.shape[dim] for p in pieces]
    pieces, joined, site_maps = _aligned(ctx, pieces, joined, dim)
    moving = [[q for q in p.parts if p.dims[dim] and p.dims[dim][0] in q.sites] for p in pieces]
    site = joined.dims[dim][0]
    span = sorted(
        {site}
        | {m[s] for m, own in zip(site_maps, moving, strict=True) for q in own for s in q.sites}
    )
    new = ctx.store.fresh(tuple(joined.sizes[s] for s in span))
    start = 0
    for piece, own, to_joined, size in zip(pieces, moving, site_maps, sizes, strict=True):
        window = [slice(None)] * len(span)
        window[span.index(site)] = slice(start, start + size)
        segment = Elements(new.ids[tuple(window)])
        start += size
        for part in own:
            axes = tuple(span.index(to_joined[s]) for s in part.sites)
            order = sorted(range(len(axes)), key=axes.__getitem__)
            source = Elements(part.elements.ids.transpose(order))
            ctx.store.relation(segment, source, tuple(sorted(axes)), defines=True)
        pinned = bool(piece.dims[dim]) and piece.dims[dim][0] in piece.pinned
        if pinned and size > 1:
            ctx.store.position(segment, span.index(site), "its position matters", defines=True)
        else:
            ctx.store.mark(segment, defines=True)
    parts = [p for p in joined.parts if not set(p.sites) <= set(span)]
    for part in joined.parts:
        if set(part.sites) <= set(span):
            ctx.store.relation(
                new, part.elements, tuple(span.index(s) for s in part.sites), defines=True
            )
    return replace(joined, parts=(*parts, Part(tuple(span), new)), pinned=joined.pinned - {site})


def _aligned(
    ctx: Context, pieces: Sequence[Label], joined: Label, dim: int
) -> tuple[list[Label], Label, list[dict[int, int]]]:
    """Split or fuse sites until every piece has those of ``joined``; maps the sites of each piece to joined ones."""
    result, maps = [], []
    for given in pieces:
        piece = given
        for d in range(len(piece.dims)):
            wanted = [joined.sizes[s] for s in joined.dims[d]]
            if d != dim and piece.dims[d] and [piece.sizes[s] for s in piece.dims[d]] != wanted:
                piece = labels.single_site(piece, d, ctx.store)
                piece = labels.split_site(piece, piece.dims[d][0], wanted)
        result.append(piece)
        pairs = (
            zip(own, theirs, strict=False)
            for own, theirs in zip(piece.dims, joined.dims, strict=True)
        )
        maps.append(dict(pair for row in pairs for pair in row))
    return result, joined, maps


@rule("cat concat concatenate")
def cat(ctx: Context, node: Node) -> list[Label]:
    """Concatenation, put together only when something other than a piece of it is used."""
    refs: list[Ref] = [
        r for r in node.arguments["tensors"] if ctx.shape(r) != (0,) and 0 not in ctx.shape(r)
    ]
    if not refs:
        return [labels.fixed(ctx.out_shape(node))]
    dim = node.arguments["dim"] % len(ctx.shape(refs[0]))
    bounds = np.cumsum([0, *(ctx.shape(r)[dim] for r in refs)])
    ctx.pieces[node.outputs[0]] = (
        dim,
        [(int(a), int(b), r) for a, b, r in zip(bounds, bounds[1:], refs, strict=False)],
    )
    ctx.known[node.outputs[0]] = lambda: concatenate(ctx, [ctx.label(r) for r in refs], dim)
    return []


@rule("stack")
def stack(ctx: Context, node: Node) -> list[Label]:
    """A new dimension; where the pieces have different elements, the result's depend on the new dimension."""
    refs: list[Ref] = node.arguments["tensors"]
    pieces = [ctx.label(r) for r in refs]
    dim = node.arguments["dim"] % (len(pieces[0].dims) + 1)
    return [stack_labels(ctx, pieces, dim)]


def stack_labels(ctx: Context, pieces: list[Label], dim: int) -> Label:
    """Pieces side by side along a new dimension."""
    first = pieces[0]
    layout = (first.dims, first.sizes)
    same_sites = all((p.dims, p.sizes) == layout for p in pieces)
    part_sites = {p.sites for piece in pieces for p in piece.parts}
    differs = same_sites and any(
        len({p.elements.key for piece in pieces for p in piece.parts if p.sites == sites}) > 1
        for sites in part_sites
    )
    if not differs or len(pieces) == 1 or _overlapping(part_sites):
        return concatenate(ctx, [labels.insert_dim(p, dim) for p in pieces], dim)
    for piece in pieces:
        ctx.use(piece)
    pinned = frozenset().union(*(p.pinned for p in pieces))
    base = Label(first.dims, first.sizes, (), pinned)
    number = len(first.sizes)
    parts = []
    for sites in sorted(part_sites):
        own = [
            next((p.elements for p in piece.parts if p.sites == sites), None) for piece in pieces
        ]
        inside = [s for s in sites if s in pinned]
        if len({e.key for e in own if e is not None}) == 1 and all(e is not None for e in own):
            parts.append(Part(sites, next(e for e in own if e is not None)))
            continue
        new = ctx.store.fresh((*(first.sizes[s] for s in sites), len(pieces)))
        for k, elements in enumerate(own):
            segment = Elements(new.ids[..., k])
            if elements is not None:
                ctx.store.relation(segment, elements, tuple(range(len(sites))), defines=True)
            else:
                ctx.store.mark(segment, defines=True)
        for s in inside:
            ctx.store.position(new, sites.index(s), "its position matters", defines=True)
        ctx.store.position(new, len(sites), "its place in a stack", defines=True)
        parts.append(Part((*sites, number), new))
    dims = [*base.dims[:dim], (number,), *base.dims[dim:]]
    grown = Label(tuple(dims), (*base.sizes, len(pieces)), tuple(parts), pinned | {number})
    return labels.arrange(grown, dims)


def _overlapping(part_sites: set[tuple[int, ...]]) -> bool:
    flat = [s for sites in part_sites for s in sites]
    return len(flat) != len(set(flat))


@rule("constant_pad_nd")
def pad(ctx: Context, node: Node) -> list[Label]:
    """Constant padding: new positions that are free among themselves; negative padding cuts."""
    label = ctx.label(node.arguments["self"])
    pads = node.arguments["pad"]
    for k in range(len(pads) // 2):
        dim, (low, high) = len(label.dims) - 1 - k, pads[2 * k : 2 * k + 2]
        size = label.shape[dim]
        if low < 0 or high < 0:
            label = labels.take(
                label, dim, np.arange(max(-low, 0), size - max(-high, 0)), ctx.store
            )
        if low > 0 or high > 0:
            label = _padded(ctx, label, dim, max(low, 0), max(high, 0))
    return [label]


def _padded(ctx: Context, label: Label, dim: int, low: int, high: int) -> Label:
    size = label.shape[dim]
    ordered = bool(label.dims[dim]) and label.dims[dim][0] in label.pinned
    blank = labels.plain(
        [*label.shape[:dim], low + high, *label.shape[dim + 1 :]], [dim] if ordered else []
    )
    # Both ends hold the same constant, so they are one piece that is then put on either side.
    order = np.concatenate(
        [np.arange(low), np.arange(size) + low + high, np.arange(low, low + high)]
    )
    return labels.take(concatenate(ctx, [blank, label], dim), dim, order, ctx.store)


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
    written = _write(ctx, view, ctx.label(node.arguments["self"]), ctx.label(node.arguments["src"]))
    return unknown(ctx, node) if written is None else [written]


@rule("tape.write_back")
def write_back(ctx: Context, node: Node) -> list[Label]:
    """What lies behind a view after a write into the view."""
    given = node.arguments
    view = _View(given["view"].removeprefix("aten."), given["view_arguments"], given["output"])
    written = _write(ctx, view, ctx.label(given["base"]), ctx.label(given["piece"]))
    return unknown(ctx, node) if written is None else [written]


def _write(ctx: Context, view: _View, base: Label, piece: Label) -> Label | None:
    """Undo one view operation; ``None`` if it is not understood."""
    if view.name in (
        "view",
        "alias",
        "detach",
        "unsqueeze",
        "squeeze",
        "_reshape_alias",
        "reshape",
    ):
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


def _write_slice(ctx: Context, view: _View, base: Label, piece: Label) -> Label | None:
    """Replace some positions of one dimension: the rest of the base is put around the piece."""
    given = view.arguments
    dim = int(given["dim"] or 0) % len(base.dims)
    size = base.shape[dim]
    if view.name == "slice":
        rows = np.arange(size)[given["start"] : given["end"] : given["step"]]
    else:
        index = int(given["index"]) % size if view.name == "select" else view.output
        rows = np.arange(index, index + 1)
        piece = labels.insert_dim(piece, dim)
    if len(rows) == size:
        return piece
    if not len(rows):
        return base
    if (np.diff(rows) != 1).any():
        rest = np.setdiff1d(np.arange(size), rows)
        apart = concatenate(ctx, [labels.take(base, dim, rest, ctx.store), piece], dim)
        return labels.take(apart, dim, np.argsort(np.concatenate([rest, rows])), ctx.store)
    start, stop = int(rows[0]), int(rows[-1]) + 1
    before = [labels.take(base, dim, np.arange(start), ctx.store)] if start else []
    after = [labels.take(base, dim, np.arange(stop, size), ctx.store)] if stop < size else []
    return concatenate(ctx, [*before, piece, *after], dim)
