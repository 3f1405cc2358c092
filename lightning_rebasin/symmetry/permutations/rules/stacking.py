"""Stacking: pieces side by side along a new dimension.

Two vectors of 3, with the elements ``[1 2 3]`` and ``[4 5 6]``, stacked to a 2×3 tensor: the elements of the result
depend on the place in the stack::

    new elements   [[7 8 9], [10 11 12]]     7 below 1, 8 below 2, 9 below 3; 10 below 4, 11 below 5, 12 below 6

and each keeps its place in the stack.  Two vectors with the *same* elements ``[1 2 3]`` give a 2×3 tensor whose columns
are ``[1 2 3]``: nothing new is needed.
"""

from __future__ import annotations

from collections.abc import Sequence

from lightning_rebasin.symmetry.permutations import label_dims
from lightning_rebasin.symmetry.permutations.elements import Elements
from lightning_rebasin.symmetry.permutations.labels import Label, Part
from lightning_rebasin.symmetry.permutations.rules.base import Context, Results
from lightning_rebasin.symmetry.permutations.rules.concatenation import (
    concatenate,
)
from lightning_rebasin.symmetry.permutations.rules.operation import Operation
from lightning_rebasin.symmetry.permutations.rules.registry import rule

Sites = tuple[int, ...]
#: For each piece its elements over some sites, if it has any there.
OfPieces = Sequence[Elements | None]


@rule("stack")
def stack(ctx: Context, op: Operation) -> Results:
    """A new dimension; where the pieces have different elements, the result's depend on the new dimension."""
    pieces = [ctx.label(ref) for ref in op["tensors"]]
    dim = op.dim(pieces[0].ndim + 1)
    return [stack_labels(ctx, pieces, dim)]


def stack_labels(ctx: Context, pieces: Sequence[Label], dim: int) -> Label:
    """Pieces side by side along a new dimension ``dim``.

    Args:
        ctx: The pass.
        pieces: Labels of one shape.
        dim: Which dimension of the result is the place in the stack.
    """
    if not _differ_part_by_part(pieces):
        grown = [label_dims.insert_dim(piece, dim) for piece in pieces]
        return concatenate(ctx, grown, dim)
    first = pieces[0]
    # The place in the stack is the last site until it is arranged.
    place = len(first.sizes)
    sizes = (*first.sizes, len(pieces))
    pinned = {place}
    for piece in pieces:
        ctx.use(piece)
        pinned |= piece.pinned
    parts = []
    for sites in sorted(_sites_of_parts(pieces)):
        own = [_elements_over(piece, sites) for piece in pieces]
        part = _shared(sites, own)
        if part is None:
            part = _stacked(ctx, sites, own, sizes, pinned)
        parts.append(part)
    dims = list(first.dims)
    dims.insert(dim, (place,))
    stacked = Label(tuple(dims), sizes, tuple(parts), frozenset(pinned))
    return label_dims.arrange(stacked, dims)


def _differ_part_by_part(pieces: Sequence[Label]) -> bool:
    """Whether the pieces have the same sites and different elements there, part by part."""
    layouts = {(piece.dims, piece.sizes) for piece in pieces}
    found = _sites_of_parts(pieces)
    # A part over (0, 1) in one piece, over (1,) in another: no part of the stack could hold both.
    covered = [site for sites in found for site in sites]
    overlapping = len(covered) > len(set(covered))
    if len(layouts) > 1 or overlapping:
        return False
    for sites in found:
        own = [_elements_over(piece, sites) for piece in pieces]
        keys = _keys(own) - {None}
        if len(keys) > 1:
            return True
    return False


def _sites_of_parts(pieces: Sequence[Label]) -> set[Sites]:
    """Over which sites any of the pieces has a part."""
    return {part.sites for piece in pieces for part in piece.parts}


def _elements_over(piece: Label, sites: Sites) -> Elements | None:
    """The elements that a piece has over some sites, if any."""
    for part in piece.parts:
        if part.sites == sites:
            return part.elements
    return None


def _keys(own: OfPieces) -> set[bytes | None]:
    """Keys of the elements; ``None`` if a piece has none."""
    return {None if elements is None else elements.key for elements in own}


def _shared(sites: Sites, own: OfPieces) -> Part | None:
    """The part of all pieces, if they all have the same."""
    elements = own[0]
    if elements is None or len(_keys(own)) > 1:
        return None
    return Part(sites, elements)


def _stacked(
    ctx: Context,
    sites: Sites,
    own: OfPieces,
    sizes: Sequence[int],
    pinned: set[int],
) -> Part:
    """A part of new elements over the sites of the pieces' and the place in the stack.

    Args:
        ctx: The pass.
        sites: Sites of the pieces.
        own: Elements of the pieces over these sites.
        sizes: Sizes of all sites; the last one is the place in the stack.
        pinned: Sites whose order matters.
    """
    span = (*sites, len(sizes) - 1)
    shape = [sizes[site] for site in span]
    new = ctx.store.fresh(tuple(shape))
    axes = range(len(sites))
    for place, elements in enumerate(own):
        segment = Elements(new.ids[..., place])
        if elements is None:
            # A constant beside units: its positions are free among themselves.
            ctx.store.mark(segment, defines=True)
        else:
            ctx.store.relation(segment, elements, tuple(axes), defines=True)
    for axis in axes:
        if sites[axis] in pinned:
            ctx.store.position(new, axis, "its position matters", defines=True)
    ctx.store.position(new, len(sites), "its place in a stack", defines=True)
    return Part(span, new)
