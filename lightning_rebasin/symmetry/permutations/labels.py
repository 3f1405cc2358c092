"""Labels: which elements the indices of a tensor are.

The dimensions of a tensor are split into *sites*, row-major factors of its shape.  A :class:`Part` says which elements
the positions over some sites are; a site may also be *pinned* (its order matters) or *free* (the tensor is constant
along it).  Splitting and merging sites is all that ``view`` does, so heads and flattened maps cost nothing: a part over
the sites (head, dim) may order the dims of every head differently.

The label of the 2×3 weight of ``Linear(3, 2)``, whose rows are the elements 0, 1 and whose columns are 2, 3, 4:

    dims   ((0,), (1,))       one site per dimension
    sizes  (2, 3)
    parts  {site 0: [0, 1], site 1: [2, 3, 4]}

Viewed as ``(6,)`` its one dimension has both sites, ``((0, 1),)``, and the parts stay as they are.  Only an operation
that looks at the 6 positions one by one has to *fuse* the two sites; then new elements are made, each of which lies
below one row and one column.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lightning_rebasin.symmetry.permutations.elements import (
    Constraints,
    Elements,
    IntArray,
)


@dataclass(frozen=True, eq=False)
class Part:
    """Positions over ``sites`` (ascending) are ``elements`` (one axis per site)."""

    sites: tuple[int, ...]
    elements: Elements


@dataclass(frozen=True, eq=False)
class Label:
    """What the positions of one tensor are.

    Args:
        dims: For each dimension its site numbers; dimensions of size 1 have none.  Sites are numbered row-major.
        sizes: Size of each site.
        parts: Which elements.
        pinned: Sites whose order matters.  Sites that are neither pinned nor in a part are free.
        pending: Elements picked out one by one; they are marked as soon as the tensor is used.
    """

    dims: tuple[tuple[int, ...], ...]
    sizes: tuple[int, ...]
    parts: tuple[Part, ...] = ()
    pinned: frozenset[int] = frozenset()
    pending: tuple[Elements, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor."""
        return tuple(
            math.prod(self.sizes[s] for s in sites) for sites in self.dims
        )

    def covered(self, site: int) -> bool:
        """Whether a part says what the positions of ``site`` are."""
        return any(site in part.sites for part in self.parts)


def plain(shape: Sequence[int], pinned: Iterable[int] = ()) -> Label:
    """A label without parts: one site per dimension, ``pinned`` dimensions pinned and the others free."""
    dims: list[tuple[int, ...]] = []
    sizes: list[int] = []
    pins = set()
    wanted = set(pinned)
    for dim, size in enumerate(shape):
        if size == 1:
            dims.append(())
            continue
        if dim in wanted:
            pins.add(len(sizes))
        dims.append((len(sizes),))
        sizes.append(int(size))
    return Label(tuple(dims), tuple(sizes), (), frozenset(pins))


def constant(shape: Sequence[int]) -> Label:
    """Free along every dimension."""
    return plain(shape)


def fixed(shape: Sequence[int]) -> Label:
    """Pinned along every dimension."""
    return plain(shape, range(len(shape)))


def canonical(label: Label, store: Constraints) -> Label:
    """The same label in terms of the current representatives."""
    if not label.parts:
        return label
    parts = [
        Part(part.sites, store.canonical(part.elements))
        for part in label.parts
    ]
    return replace(label, parts=tuple(parts))


def arrange(label: Label, dims: Sequence[Sequence[int]]) -> Label:
    """The label with its sites arranged into new ``dims`` (every site exactly once), renumbered row-major.

    Transposing the label of a 2×3 weight is ``arrange(label, [[1], [0]])``: site 1 becomes site 0.
    """
    order = [site for sites in dims for site in sites]
    if order == list(range(len(label.sizes))):
        return replace(label, dims=tuple(tuple(sites) for sites in dims))
    number = {site: i for i, site in enumerate(order)}
    return Label(
        tuple(tuple(number[site] for site in sites) for sites in dims),
        tuple(label.sizes[site] for site in order),
        tuple(renumbered(part, number) for part in label.parts),
        frozenset(number[site] for site in label.pinned),
        label.pending,
    )


def renumbered(part: Part, number: Mapping[int, int]) -> Part:
    """A part whose sites have other numbers; its axes follow, because sites are ascending."""
    new = [number[site] for site in part.sites]
    axes = sorted(range(len(new)), key=new.__getitem__)
    elements = part.elements
    if axes != list(range(len(axes))):
        elements = Elements(elements.ids.transpose(axes))
    return Part(tuple(sorted(new)), elements)


def permute(label: Label, order: Sequence[int]) -> Label:
    """Reorder dimensions."""
    return arrange(label, [label.dims[dim] for dim in order])


def insert_dim(label: Label, dim: int) -> Label:
    """A new dimension of size 1 before ``dim``."""
    return replace(label, dims=(*label.dims[:dim], (), *label.dims[dim:]))


def drop_dim(label: Label, dim: int) -> Label:
    """Remove a dimension of size 1."""
    return replace(label, dims=(*label.dims[:dim], *label.dims[dim + 1 :]))


def _with_sites(
    label: Label,
    new: Sequence[tuple[int, ...]],
    sizes: Sequence[int],
    parts: Iterable[Part],
) -> Label:
    """The label after its sites were split, fused or dropped: old site ``s`` is now the sites ``new[s]``."""
    pinned = {site for old in label.pinned for site in new[old]}
    dims = tuple(_now(sites, new) for sites in label.dims)
    return Label(
        dims, tuple(sizes), tuple(parts), frozenset(pinned), label.pending
    )


def _now(
    sites: Iterable[int], new: Sequence[tuple[int, ...]]
) -> tuple[int, ...]:
    """What some old sites are now, ascending, each once (fused sites are several old ones)."""
    found = {site for old in sites for site in new[old]}
    return tuple(sorted(found))


def split_site(label: Label, site: int, factors: Sequence[int]) -> Label:
    """Split one site into row-major ``factors``.

    A site of 6 with elements ``[0 … 5]`` split into ``(2, 3)`` is two sites with elements ``[[0, 1, 2], [3, 4, 5]]``.
    """
    factors = [factor for factor in factors if factor != 1]
    if len(factors) == 1:
        return label
    count = len(factors)
    new: list[tuple[int, ...]] = [(old,) for old in range(site)]
    new.append(tuple(range(site, site + count)))
    new += [(old + count - 1,) for old in range(site + 1, len(label.sizes))]
    parts = []
    for part in label.parts:
        elements = part.elements
        if site in part.sites:
            axis = part.sites.index(site)
            shape = (
                *elements.shape[:axis],
                *factors,
                *elements.shape[axis + 1 :],
            )
            elements = Elements(elements.ids.reshape(shape))
        parts.append(Part(_now(part.sites, new), elements))
    sizes = (*label.sizes[:site], *factors, *label.sizes[site + 1 :])
    return _with_sites(label, new, sizes, parts)


def fuse_sites(
    label: Label, first: int, count: int, store: Constraints
) -> Label:
    """Fuse ``count`` consecutive sites into one (they must belong to one dimension, or be about to)."""
    if count <= 1:
        return label
    fused = set(range(first, first + count))
    touching = [part for part in label.parts if fused.intersection(part.sites)]
    if not touching:
        return _with_fused(label, first, count, [])
    if len(touching) > 1 or not fused <= set(touching[0].sites):
        # Two parts cannot share one site: the positions get elements of their own below those of the parts.
        label = _joint(label, fused, touching, store)
        touching = [
            part for part in label.parts if fused.intersection(part.sites)
        ]
    else:
        _keep_pinned_positions(label, fused, touching[0], store)
    # The elements of the part know which positions are fixed; the fused site as a whole is not.
    label = replace(label, pinned=label.pinned.difference(fused))
    return _with_fused(label, first, count, touching)


def _keep_pinned_positions(
    label: Label, fused: set[int], part: Part, store: Constraints
) -> None:
    """A site that is pinned stays so inside a fused one: its coordinate becomes a property of the elements."""
    for site in label.pinned.intersection(fused):
        axis = part.sites.index(site)
        store.position(
            part.elements, axis, "its position matters", defines=True
        )


def _with_fused(
    label: Label, first: int, count: int, touching: Sequence[Part]
) -> Label:
    """Renumber after fusing; ``touching`` are the parts that cover all of the fused sites."""
    last = first + count - 1
    new = [
        (min(max(first, s - count + 1), s),) for s in range(len(label.sizes))
    ]
    size = math.prod(label.sizes[first : last + 1])
    parts = []
    for part in label.parts:
        elements = part.elements
        if any(part is one for one in touching):
            axis = part.sites.index(first)
            shape = (
                *elements.shape[:axis],
                size,
                *elements.shape[axis + count :],
            )
            elements = Elements(elements.ids.reshape(shape))
        parts.append(Part(_now(part.sites, new), elements))
    sizes = (*label.sizes[:first], size, *label.sizes[last + 1 :])
    return _with_sites(label, new, sizes, parts)


def _joint(
    label: Label, fused: set[int], touching: list[Part], store: Constraints
) -> Label:
    """Replace the parts that touch ``fused`` by one over all their sites, made of new elements below the old ones.

    For the rows ``[0, 1]`` and columns ``[2, 3, 4]`` of a 2×3 weight the new elements are ``[[5, 6, 7], [8, 9, 10]]``;
    5 lies below row 0 and column 2.
    """
    own = {site for part in touching for site in part.sites}
    sites = tuple(sorted(fused | own))
    new = store.fresh(tuple(label.sizes[site] for site in sites))
    for part in touching:
        axes = tuple(sites.index(site) for site in part.sites)
        store.relation(new, part.elements, axes, defines=True)
    for site in label.pinned & set(sites):
        store.position(
            new, sites.index(site), "its position matters", defines=True
        )
    others = [part for part in label.parts if part not in touching]
    return replace(label, parts=(*others, Part(sites, new)))


def single_site(label: Label, dim: int, store: Constraints) -> Label:
    """The label with the sites of ``dim`` fused into one."""
    sites = label.dims[dim]
    return (
        fuse_sites(label, sites[0], len(sites), store)
        if len(sites) > 1
        else label
    )


def view(label: Label, shape: Sequence[int], store: Constraints) -> Label:
    """Row-major reshape: sites are handed out to the new dimensions in order, split or fused where sizes demand it.

    Viewing sites ``(2, 3)`` as ``(6,)`` gives one dimension both sites; as ``(3, 2)``, neither size divides the other,
    so the two are fused to 6 and split to ``(3, 2)``.
    """
    label = arrange(label, [[site for sites in label.dims for site in sites]])
    dims: list[list[int]] = []
    site = 0
    for size in shape:
        mine: list[int] = []
        need = int(size)
        while need > 1:
            have = label.sizes[site]
            if need % have == 0:
                need //= have
            elif have % need == 0:
                label = split_site(label, site, (need, have // need))
                need = 1
            else:
                # try again with the next site joined to this one
                label = fuse_sites(label, site, 2, store)
                continue
            mine.append(site)
            site += 1
        dims.append(mine)
    return replace(label, dims=tuple(tuple(sites) for sites in dims))


def expand(label: Label, shape: Sequence[int]) -> Label:
    """Broadcast to ``shape``: new dimensions and grown ones are free."""
    lead = len(shape) - len(label.dims)
    sizes = list(label.sizes)
    dims: list[tuple[int, ...]] = []
    for dim, size in enumerate(shape):
        old = label.dims[dim - lead] if dim >= lead else ()
        if not old and size not in (1, -1):
            sizes.append(int(size))
            old = (len(sizes) - 1,)
        dims.append(old)
    grown = Label(
        tuple(dims), tuple(sizes), label.parts, label.pinned, label.pending
    )
    return arrange(grown, dims)


def take(label: Label, dim: int, index: IntArray, store: Constraints) -> Label:
    """Keep the positions ``index`` of one dimension (a slice, a flip, a constant gather).

    Columns ``[2, 0]`` of the 2×3 weight above: site 1 now has size 2 and elements ``[4, 2]``.
    """
    if not label.dims[dim]:
        if len(index) == 1:
            return label
        shape = label.shape
        return expand(label, (*shape[:dim], len(index), *shape[dim + 1 :]))
    size = label.shape[dim]
    if len(index) == size and bool((index == np.arange(size)).all()):
        return label
    label, site, index = _outer_site(label, dim, index, store)
    sizes = (*label.sizes[:site], len(index), *label.sizes[site + 1 :])
    repeated = len(np.unique(index)) < len(index)
    parts = []
    for part in label.parts:
        if site not in part.sites:
            parts.append(part)
            continue
        axis = part.sites.index(site)
        picked = Elements(part.elements.ids.take(index, axis))
        parts.append(
            Part(part.sites, _copies(picked, store) if repeated else picked)
        )
    return _drop_unit(replace(label, sizes=sizes, parts=tuple(parts)), site)


def _copies(elements: Elements, store: Constraints) -> Elements:
    """New elements, each a copy of an old one: an element that stands twice in one part could not move."""
    copies = store.fresh(elements.shape)
    store.relation(
        copies, elements, tuple(range(len(elements.shape))), defines=True
    )
    return copies


def _outer_site(
    label: Label, dim: int, index: IntArray, store: Constraints
) -> tuple[Label, int, IntArray]:
    """Express positions of a dimension as positions of its outermost site if they are whole blocks, else fuse.

    Of a dimension with sites (4 heads, 8 dims) the positions 8 … 23 are heads 1 and 2.
    """
    sites = label.dims[dim]
    inner = math.prod(label.sizes[site] for site in sites[1:])
    if len(sites) > 1 and len(index) % inner == 0:
        blocks = index.reshape(-1, inner)
        first = blocks[:, 0]
        consecutive = bool((blocks == first[:, None] + np.arange(inner)).all())
        if consecutive and bool((first % inner == 0).all()):
            return label, sites[0], first // inner
    label = single_site(label, dim, store)
    return label, label.dims[dim][0], index


def _drop_unit(label: Label, site: int) -> Label:
    """Remove a site of size 1: what it picked out alone is pending.  An empty site stays, but has no elements."""
    if label.sizes[site] > 1:
        return label
    parts: list[Part] = []
    pending = list(label.pending)
    for part in label.parts:
        others = tuple(other for other in part.sites if other != site)
        if site not in part.sites:
            parts.append(part)
        elif part.elements.ids.size and others:
            ids = part.elements.ids.squeeze(part.sites.index(site))
            parts.append(Part(others, Elements(ids)))
        elif part.elements.ids.size:
            pending.append(part.elements)
    if label.sizes[site] == 0:
        return label
    new: list[tuple[int, ...]] = [(old,) for old in range(site)]
    new.append(())
    new += [(old - 1,) for old in range(site + 1, len(label.sizes))]
    sizes = (*label.sizes[:site], *label.sizes[site + 1 :])
    kept = [Part(_now(part.sites, new), part.elements) for part in parts]
    return replace(
        _with_sites(label, new, sizes, kept), pending=tuple(pending)
    )


def pin_dims(
    label: Label, dims: Iterable[int], store: Constraints, reason: str
) -> Label:
    """Fix the order along some dimensions."""
    sites = {site for dim in dims for site in label.dims[dim]}
    parts = []
    for part in label.parts:
        inside = sites.intersection(part.sites)
        if inside == set(part.sites):
            store.pin(part.elements, reason)
            continue
        # Only some of its sites are fixed: an element may still move to one with the same coordinates there.
        for site in sorted(inside):
            store.position(part.elements, part.sites.index(site), reason)
        parts.append(part)
    return replace(label, parts=tuple(parts), pinned=label.pinned | sites)


def insert_pinned(label: Label, dim: int, size: int) -> Label:
    """A new pinned dimension of ``size`` before ``dim``."""
    label = insert_dim(label, dim)
    if size == 1:
        return label
    new = len(label.sizes)
    dims = list(label.dims)
    dims[dim] = (new,)
    pinned = label.pinned | {new}
    grown = Label(
        tuple(dims), (*label.sizes, size), label.parts, pinned, label.pending
    )
    return arrange(grown, dims)
