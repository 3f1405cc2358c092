"""Labels: which elements the indices of a tensor are.

The dimensions of a tensor are split into *sites*, row-major factors of its shape.  A :class:`Part` says which elements
the positions over some sites are; a site may also be *pinned* (its order matters) or *free* (the tensor is constant
along it).  Splitting and merging sites is all that ``view`` does, so heads and flattened maps cost nothing: a part over
the sites (head, dim) may order the dims of every head differently.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lightning_rebasin.symmetry.permutations.elements import Constraints, Elements, IntArray


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
        return tuple(math.prod(self.sizes[s] for s in sites) for sites in self.dims)

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
    return replace(
        label, parts=tuple(Part(p.sites, store.canonical(p.elements)) for p in label.parts)
    )


def arrange(label: Label, dims: Sequence[Sequence[int]]) -> Label:
    """The label with its sites arranged into new ``dims`` (every site exactly once), renumbered row-major."""
    order = [site for sites in dims for site in sites]
    if order == list(range(len(label.sizes))):
        return replace(label, dims=tuple(tuple(sites) for sites in dims))
    number = {site: i for i, site in enumerate(order)}
    parts = []
    for part in label.parts:
        new = [number[s] for s in part.sites]
        axes = sorted(range(len(new)), key=new.__getitem__)
        elements = (
            part.elements
            if axes == list(range(len(axes)))
            else Elements(part.elements.ids.transpose(axes))
        )
        parts.append(Part(tuple(sorted(new)), elements))
    return Label(
        tuple(tuple(number[s] for s in sites) for sites in dims),
        tuple(label.sizes[s] for s in order),
        tuple(parts),
        frozenset(number[s] for s in label.pinned),
        label.pending,
    )


def permute(label: Label, order: Sequence[int]) -> Label:
    """Reorder dimensions."""
    return arrange(label, [label.dims[d] for d in order])


def insert_dim(label: Label, dim: int) -> Label:
    """A new dimension of size 1 before ``dim``."""
    return replace(label, dims=(*label.dims[:dim], (), *label.dims[dim:]))


def drop_dim(label: Label, dim: int) -> Label:
    """Remove a dimension of size 1."""
    return replace(label, dims=(*label.dims[:dim], *label.dims[dim + 1 :]))


def split_site(label: Label, site: int, factors: Sequence[int]) -> Label:
    """Split one site into row-major ``factors``."""
    factors = [f for f in factors if f != 1]
    if len(factors) == 1:
        return label
    extra = len(factors) - 1

    def renumber(s: int) -> tuple[int, ...]:
        if s < site:
            return (s,)
        return tuple(range(site, site + extra + 1)) if s == site else (s + extra,)

    parts = []
    for part in label.parts:
        sites = tuple(n for s in part.sites for n in renumber(s))
        if site not in part.sites:
            parts.append(Part(sites, part.elements))
            continue
        axis = part.sites.index(site)
        shape = (*part.elements.shape[:axis], *factors, *part.elements.shape[axis + 1 :])
        parts.append(Part(sites, Elements(part.elements.ids.reshape(shape))))
    return Label(
        tuple(tuple(n for s in sites for n in renumber(s)) for sites in label.dims),
        (*label.sizes[:site], *factors, *label.sizes[site + 1 :]),
        tuple(parts),
        frozenset(n for s in label.pinned for n in renumber(s)),
        label.pending,
    )


def fuse_sites(label: Label, first: int, count: int, store: Constraints) -> Label:
    """Merge ``count`` consecutive sites into one (they must belong to one dimension, or be about to)."""
    if count <= 1:
        return label
    fused = range(first, first + count)
    touching = [p for p in label.parts if set(p.sites) & set(fused)]
    if touching and not (len(touching) == 1 and set(fused) <= set(touching[0].sites)):
        label = _joint(label, set(fused), touching, store)
        touching = [p for p in label.parts if set(p.sites) & set(fused)]
    elif touching:
        for site in label.pinned.intersection(fused):
            store.position(
                touching[0].elements,
                touching[0].sites.index(site),
                "its position matters",
                defines=True,
            )
    if touching:
        # The elements of the part know which positions are fixed; the fused site as a whole is not.
        label = replace(label, pinned=label.pinned.difference(fused))

    def renumber(sites: Iterable[int]) -> tuple[int, ...]:
        return tuple(
            sorted({s if s < first else first if s in fused else s - count + 1 for s in sites})
        )

    size = math.prod(label.sizes[s] for s in fused)
    parts = []
    for part in label.parts:
        ids = part.elements.ids
        if part in touching:
            axis = part.sites.index(first)
            ids = ids.reshape(*ids.shape[:axis], size, *ids.shape[axis + count :])
        parts.append(
            Part(renumber(part.sites), Elements(ids) if part in touching else part.elements)
        )
    return Label(
        tuple(renumber(sites) for sites in label.dims),
        (*label.sizes[:first], size, *label.sizes[first + count :]),
        tuple(parts),
        frozenset(renumber(label.pinned)),
        label.pending,
    )


def _joint(label: Label, fused: set[int], touching: list[Part], store: Constraints) -> Label:
    """Replace the parts that touch ``fused`` by one over all their sites, made of new elements below the old ones."""
    sites = tuple(sorted(fused.union(*(p.sites for p in touching))))
    new = store.fresh(tuple(label.sizes[s] for s in sites))
    for part in touching:
        store.relation(new, part.elements, tuple(sites.index(s) for s in part.sites), defines=True)
    for site in label.pinned & set(sites):
        store.position(new, sites.index(site), "its position matters", defines=True)
    parts = (*(p for p in label.parts if p not in touching), Part(sites, new))
    return replace(label, parts=parts)


def single_site(label: Label, dim: int, store: Constraints) -> Label:
    """The label with the sites of ``dim`` fused into one."""
    sites = label.dims[dim]
    return fuse_sites(label, sites[0], len(sites), store) if len(sites) > 1 else label


def view(label: Label, shape: Sequence[int], store: Constraints) -> Label:
    """Row-major reshape."""
    label = arrange(label, [[s for sites in label.dims for s in sites]])
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
                label = fuse_sites(label, site, 2, store)
                continue
            mine.append(site)
            site += 1
        dims.append(mine)
    return replace(label, dims=tuple(tuple(sites) for sites in dims))


def expand(label: Label, shape: Sequence[int]) -> Label:
    """Broadcast to ``shape``: new dimensions and grown ones are free."""
    lead = len(shape) - len(label.dims)
    sizes, pending = list(label.sizes), label.pending
    dims: list[tuple[int, ...]] = []
    for dim, size in enumerate(shape):
        old = label.dims[dim - lead] if dim >= lead else ()
        if not old and size not in (1, -1):
            sizes.append(int(size))
            old = (len(sizes) - 1,)
        dims.append(old)
    return arrange(Label(tuple(dims), tuple(sizes), label.parts, label.pinned, pending), dims)


def take(label: Label, dim: int, index: IntArray, store: Constraints) -> Label:
    """Keep the positions ``index`` of one dimension (a slice, a flip, a constant gather)."""
    if not label.dims[dim]:
        return label if len(index) == 1 else expand(label, _with(label.shape, dim, len(index)))
    size = label.shape[dim]
    if len(index) == size and bool((index == np.arange(size)).all()):
        return label
    label, site, index = _outer_site(label, dim, index, store)
    sizes = (*label.sizes[:site], len(index), *label.sizes[site + 1 :])
    parts = []
    repeated = len(np.unique(index)) < len(index)
    for part in label.parts:
        if site not in part.sites:
            parts.append(part)
            continue
        axis = part.sites.index(site)
        picked = Elements(part.elements.ids.take(index, axis))
        if repeated:
            copies = store.fresh(picked.shape)
            store.relation(copies, picked, tuple(range(len(picked.shape))), defines=True)
            picked = copies
        parts.append(Part(part.sites, picked))
    return _drop_unit(replace(label, sizes=sizes, parts=tuple(parts)), site)


def _outer_site(
    label: Label, dim: int, index: IntArray, store: Constraints
) -> tuple[Label, int, IntArray]:
    """Express positions of a dimension as positions of its outermost site if they are whole blocks, else fuse."""
    sites = label.dims[dim]
    inner = math.prod(label.sizes[s] for s in sites[1:])
    if len(sites) > 1 and len(index) % inner == 0:
        blocks = index.reshape(-1, inner)
        if bool((blocks == blocks[:, :1] + np.arange(inner)).all()) and bool(
            (blocks[:, 0] % inner == 0).all()
        ):
            return label, sites[0], blocks[:, 0] // inner
    label = single_site(label, dim, store)
    return label, label.dims[dim][0], index


def _drop_unit(label: Label, site: int) -> Label:
    """Remove a site of size 1 (or 0): what it picked out is pending."""
    if label.sizes[site] > 1:
        return label
    parts, pending = [], list(label.pending)
    for part in label.parts:
        if site not in part.sites:
            parts.append(part)
            continue
        ids = part.elements.ids.reshape(
            [n for s, n in zip(part.sites, part.elements.shape, strict=True) if s != site]
        )
        if len(part.sites) > 1 and ids.size:
            parts.append(Part(tuple(s for s in part.sites if s != site), Elements(ids)))
        elif ids.size:
            pending.append(part.elements)
    if label.sizes[site] == 0:
        return label
    kept = [s for s in range(len(label.sizes)) if s != site]
    number = {s: i for i, s in enumerate(kept)}
    return Label(
        tuple(tuple(number[s] for s in sites if s != site) for sites in label.dims),
        tuple(label.sizes[s] for s in kept),
        tuple(Part(tuple(number[s] for s in p.sites), p.elements) for p in parts),
        frozenset(number[s] for s in label.pinned if s != site),
        tuple(pending),
    )


def _with(shape: tuple[int, ...], dim: int, size: int) -> tuple[int, ...]:
    return (*shape[:dim], size, *shape[dim + 1 :])


def pin_dims(label: Label, dims: Iterable[int], store: Constraints, reason: str) -> Label:
    """Fix the order along some dimensions."""
    sites = {s for dim in dims for s in label.dims[dim]}
    parts = []
    for part in label.parts:
        inside = sites.intersection(part.sites)
        if inside == set(part.sites):
            store.pin(part.elements, reason)
            continue
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
    dims = [(new,) if d == dim else sites for d, sites in enumerate(label.dims)]
    grown = Label(
        tuple(dims), (*label.sizes, size), label.parts, label.pinned | {new}, label.pending
    )
    return arrange(grown, dims)
