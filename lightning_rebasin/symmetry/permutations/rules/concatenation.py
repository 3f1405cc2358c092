"""Concatenation and padding: pieces one after the other along one dimension.

A 2×3 and a 2×2 tensor side by side are a 2×5 tensor.  Along the columns it has five new elements, copies of the pieces'
elements::

    pieces         [1 2 3]   [4 5]
    new elements   [10 11 12  13 14]      10 below 1, 11 below 2, 12 below 3;  13 below 4, 14 below 5

and each piece is marked, so that no column moves from one piece to the other.  The rows of both pieces are joined.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from lightning_rebasin.symmetry.permutations import label_dims, labels
from lightning_rebasin.symmetry.permutations.elements import Elements
from lightning_rebasin.symmetry.permutations.label_views import single_site
from lightning_rebasin.symmetry.permutations.labels import (
    Label,
    Part,
    renumber_part,
)
from lightning_rebasin.symmetry.permutations.rules.base import (
    Context,
    LayoutNotCovered,
    Piece,
    Pieces,
    Results,
)
from lightning_rebasin.symmetry.permutations.rules.operation import Operation
from lightning_rebasin.symmetry.permutations.rules.registry import rule
from lightning_rebasin.symmetry.trace.tape import Ref


@rule("cat concat concatenate")
def cat(ctx: Context, op: Operation) -> Results:
    """Concatenation, put together only when something other than a piece of it is used."""
    dim = op.dim(len(op.out_shape))
    # Empty pieces hold nothing; torch even lets them have another number of dimensions.
    given: list[Ref] = op["tensors"]
    refs = [ref for ref in given if 0 not in ctx.shape(ref)]
    pieces = []
    start = 0
    for ref in refs:
        stop = start + ctx.shape(ref)[dim]
        pieces.append(Piece(start, stop, ref))
        start = stop

    def put_together() -> Label:
        return concatenate(ctx, [ctx.label(ref) for ref in refs], dim)

    result = op.results[0].value
    ctx.concatenated[result] = Pieces(dim, pieces)
    ctx.known[result] = put_together
    # No label is given here, because one would replace the function that makes it.
    return []


def concatenate(ctx: Context, pieces: Sequence[Label], dim: int) -> Label:
    """Pieces one after the other along ``dim``; they are joined along all other dimensions.

    Args:
        ctx: The pass.
        pieces: Labels that differ in size along ``dim`` only.
        dim: The dimension.

    Returns:
        A label with new elements along ``dim``, copies of the pieces' (one table for each piece, so that two copies of
        one piece stay apart).
    """
    pieces = [_prepared(ctx, piece, dim) for piece in pieces]
    others = pieces[0].dims_without(dim)
    operands = [(_without(piece, dim), others) for piece in pieces]
    size = sum(piece.shape[dim] for piece in pieces)
    joined = ctx.join(operands, others)
    joined = label_dims.insert_pinned(joined, dim, size)
    moving = any(_may_move(piece, dim) for piece in pieces)
    if size == 1 or not moving:
        # Positions only, or one position: the dimension is pinned and that is all.
        return joined
    fitted = [_fitted(ctx, piece, joined, dim) for piece in pieces]
    return _with_copies(ctx, fitted, joined, dim)


def _prepared(ctx: Context, piece: Label, dim: int) -> Label:
    """The present label of a piece, with one site along ``dim``."""
    piece = labels.canonical(piece, ctx.store)
    return single_site(piece, dim, ctx.store)


def _may_move(piece: Label, dim: int) -> bool:
    """Whether anything but fixed positions lies along a dimension of a piece."""
    if piece.parts_along(dim):
        return True
    # A constant piece beside ordered ones (an initial state of zeros) is free within itself.
    several = piece.shape[dim] > 1
    return several and not piece.is_pinned(dim)


def _without(label: Label, dim: int) -> Label:
    """The label without one dimension and the parts along it."""
    moving = label.parts_along(dim)
    parts = [part for part in label.parts if part not in moving]
    pinned = label.pinned.difference(label.dims[dim])
    left = replace(label, parts=tuple(parts), pinned=pinned)
    return label_dims.permute(left, label.dims_without(dim))


@dataclass(frozen=True)
class _Fitted:
    """A piece whose sites outside of ``dim`` are those of the whole.

    Args:
        size: Size along ``dim``.
        moving: Its parts along ``dim``, in terms of the sites of the whole.
        pinned: Whether its order along ``dim`` matters.
    """

    size: int
    moving: Sequence[Part]
    pinned: bool


def _fitted(ctx: Context, piece: Label, whole: Label, dim: int) -> _Fitted:
    """Split or fuse sites of a piece until it has those of the whole."""
    for other in piece.dims_without(dim):
        wanted = whole.sizes_of(whole.dims[other])
        have = piece.sizes_of(piece.dims[other])
        if have and have != wanted:
            piece = single_site(piece, other, ctx.store)
            (site,) = piece.dims[other]
            piece = labels.split_site(piece, site, wanted)
    number: dict[int, int] = {}
    for own, theirs in zip(piece.dims, whole.dims, strict=True):
        # A piece of size 1 along ``dim`` has no site there.
        number.update(zip(own, theirs, strict=False))
    along = piece.parts_along(dim)
    moving = [renumber_part(part, number) for part in along]
    return _Fitted(piece.shape[dim], moving, piece.is_pinned(dim))


def _with_copies(
    ctx: Context, pieces: Sequence[_Fitted], joined: Label, dim: int
) -> Label:
    """New elements along ``dim`` (and the sites that the pieces' elements depend on)."""
    (site,) = joined.dims[dim]
    covered = {site}
    for piece in pieces:
        covered.update(*(part.sites for part in piece.moving))
    span = tuple(sorted(covered))
    sizes = [joined.sizes[place] for place in span]
    new = ctx.store.fresh(tuple(sizes))
    along = span.index(site)

    start = 0
    for piece in pieces:
        stop = start + piece.size
        places = range(start, stop)
        segment = Elements(new.ids.take(places, along))
        _copy_piece(ctx, segment, span, piece, along)
        start = stop
    parts = []
    for part in joined.parts:
        if set(part.sites).issubset(span):
            # What the whole says about these sites is said by the new elements from now on.
            _put_below(ctx, new, span, part)
        else:
            parts.append(part)
    parts.append(Part(span, new))
    pinned = joined.pinned - {site}
    return replace(joined, parts=tuple(parts), pinned=pinned)


def _copy_piece(
    ctx: Context,
    segment: Elements,
    span: Sequence[int],
    piece: _Fitted,
    along: int,
) -> None:
    """Make a run of new elements copies of the elements of one piece."""
    for part in piece.moving:
        _put_below(ctx, segment, span, part)
    if piece.pinned:
        ctx.store.position(
            segment, along, "its position matters", defines=True
        )
    else:
        ctx.store.mark(segment, defines=True)


def _put_below(
    ctx: Context, child: Elements, span: Sequence[int], parent: Part
) -> None:
    """Elements over the sites ``span`` are copies, or lie in the blocks, of a part over some of these sites."""
    axes = [span.index(site) for site in parent.sites]
    ctx.store.relation(child, parent.elements, tuple(axes), defines=True)


@rule("constant_pad_nd")
def pad(ctx: Context, op: Operation) -> Results:
    """Constant padding: new positions that are free among themselves; negative padding cuts."""
    label = op.label()
    if 0 in label.shape:
        raise LayoutNotCovered("padding of a tensor without positions")
    pads = op["pad"]
    # Pairs of how many before and behind, from the last dimension on.
    before = pads[::2]
    behind = pads[1::2]
    dim = label.ndim
    for low, high in zip(before, behind, strict=True):
        dim -= 1
        label = _cropped(ctx, label, dim, -low, -high)
        label = _padded(ctx, label, dim, low, high)
    return [label]


def _cropped(
    ctx: Context, label: Label, dim: int, low: int, high: int
) -> Label:
    """One dimension without ``low`` positions before and ``high`` behind, where they are positive."""
    if low <= 0 and high <= 0:
        return label
    start = max(low, 0)
    stop = label.shape[dim] - max(high, 0)
    return ctx.take(label, dim, np.arange(start, stop))


def _padded(
    ctx: Context, label: Label, dim: int, low: int, high: int
) -> Label:
    """One dimension with ``low`` constants before and ``high`` behind, where they are positive."""
    low = max(low, 0)
    high = max(high, 0)
    new = low + high
    if new == 0:
        return label
    shape = list(label.shape)
    shape[dim] = new
    pinned = [dim] if label.is_pinned(dim) else []
    blank = labels.plain(shape, pinned)
    # Both ends hold the same constant, so they are one piece that is then put on either side.
    joined = concatenate(ctx, [blank, label], dim)
    places = np.arange(joined.shape[dim])
    before = places[:low]
    behind = places[low:new]
    order = np.concatenate([before, places[new:], behind])
    return ctx.take(joined, dim, order)
