"""Labels: which elements the indices of a tensor are.

The dimensions of a tensor are split into *sites*, row-major factors of its shape.  A :class:`Part` says which elements
the positions over some sites are; a site may also be *pinned* (its order matters) or *free* (the tensor is constant
along it).

The weight of ``Linear(3, 2)`` is a 2×3 tensor.  Let its rows be the elements 0, 1 and its columns the elements 2, 3, 4;
then its label is::

    dims  = ((0,), (1,))            one site for each dimension
    sizes = (2, 3)
    parts = (0,): [0 1]             row r is element r
            (1,): [2 3 4]           column c is element 2 + c

Transposed, the sites change places and are numbered anew, so that they always ascend from dimension to dimension::

    dims  = ((0,), (1,))
    sizes = (3, 2)
    parts = (0,): [2 3 4]
            (1,): [0 1]

Flattened to 6 positions, the one dimension has two sites and nothing else changes: ``dims = ((0, 1),)``.  Position 4 is
``1·3 + 1``, so it belongs to row element 1 and column element 3.  This is why heads and flattened maps cost nothing.  A
part over both sites, ``(0, 1): [[5 6 7], [8 9 10]]``, may order the columns of every row differently.

The label is a value, and every function makes a new one.  Here are those that make, renumber, split and pin; moved
dimensions are in :mod:`~lightning_rebasin.symmetry.permutations.label_dims`, row-major reshapes in
:mod:`~lightning_rebasin.symmetry.permutations.label_views`, slices in
:mod:`~lightning_rebasin.symmetry.permutations.label_slices`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import final

from lightning_rebasin.symmetry.permutations.elements import (
    Constraints,
    Elements,
)

#: Numbers of some sites.
Sites = tuple[int, ...]
#: Says what some old sites are called in a new label.
Follow = Callable[[Iterable[int]], Sites]


@final
@dataclass(frozen=True, eq=False)
class Part:
    """Positions over ``sites`` (ascending) are ``elements`` (one axis per site)."""

    sites: Sites
    elements: Elements

    def with_elements(self, elements: Elements) -> Part:
        """The same sites with other elements."""
        return Part(self.sites, elements)

    def axis_of(self, site: int) -> int:
        """The axis of the elements that belongs to one of the sites."""
        return self.sites.index(site)

    def axes_of(self, sites: Iterable[int]) -> tuple[int, ...]:
        """The axes of the elements that belong to some of the sites."""
        return tuple(self.axis_of(site) for site in sites)

    def touches(self, sites: Iterable[int]) -> bool:
        """Whether the part lies over any of some sites."""
        return not set(sites).isdisjoint(self.sites)


@final
@dataclass(frozen=True, eq=False)
class Label:
    """What the positions of one tensor are.

    Args:
        dims: For each dimension its site numbers; dimensions of size 1 have none.  Sites are numbered row-major.
        sizes: Size of each site.
        parts: Which elements.
        pinned: Sites whose order matters.  Sites that are neither pinned nor in a part are free.
        pending: Elements picked out one by one; they are pinned as soon as the tensor is used.
    """

    dims: tuple[Sites, ...]
    sizes: tuple[int, ...]
    parts: tuple[Part, ...] = ()
    pinned: frozenset[int] = frozenset()
    pending: tuple[Elements, ...] = ()

    def with_dims(self, dims: Iterable[Sites]) -> Label:
        """The same sites in other dimensions."""
        return replace(self, dims=tuple(dims))

    def with_parts(self, parts: Iterable[Part]) -> Label:
        """The same sites with other parts."""
        return replace(self, parts=tuple(parts))

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.dims)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor."""
        sizes = [self.size_of(sites) for sites in self.dims]
        return tuple(sizes)

    def sizes_of(self, sites: Iterable[int]) -> tuple[int, ...]:
        """Sizes of some sites."""
        return tuple(self.sizes[site] for site in sites)

    def size_of(self, sites: Iterable[int]) -> int:
        """Product of the sizes of some sites."""
        sizes = self.sizes_of(sites)
        return math.prod(sizes)

    def sites_of(self, dims: Iterable[int]) -> set[int]:
        """Sites of some dimensions."""
        sites: set[int] = set()
        for dim in dims:
            sites.update(self.dims[dim])
        return sites

    def dims_without(self, *dims: int) -> list[int]:
        """All other dimensions."""
        all_dims = range(self.ndim)
        return [dim for dim in all_dims if dim not in dims]

    def parts_along(self, dim: int) -> list[Part]:
        """Parts that say what the positions of a dimension are."""
        sites = self.dims[dim]
        return [part for part in self.parts if part.touches(sites)]

    def is_pinned(self, dim: int) -> bool:
        """Whether the order along the outermost site of a dimension matters."""
        sites = self.dims[dim]
        outermost = sites[:1]
        return not self.pinned.isdisjoint(outermost)


def plain(shape: Sequence[int], pinned: Iterable[int] = ()) -> Label:
    """A label without parts: one site per dimension, ``pinned`` dimensions pinned and the others free."""
    dims: list[Sites] = []
    sizes: list[int] = []
    for size in shape:
        if size == 1:
            # One position has no order: a site for it could only get in the way of broadcasting.
            dims.append(())
        else:
            dims.append((len(sizes),))
            sizes.append(int(size))
    pinned_sites: set[int] = set()
    for dim in pinned:
        pinned_sites.update(dims[dim])
    return Label(tuple(dims), tuple(sizes), pinned=frozenset(pinned_sites))


def constant(shape: Sequence[int]) -> Label:
    """Free along every dimension."""
    return plain(shape)


def fixed(shape: Sequence[int]) -> Label:
    """Pinned along every dimension."""
    dims = range(len(shape))
    return plain(shape, dims)


def canonical(label: Label, store: Constraints) -> Label:
    """The same label in terms of the current representatives."""
    parts = []
    changed = False
    for part in label.parts:
        elements = store.canonical(part.elements)
        changed |= elements is not part.elements
        parts.append(part.with_elements(elements))
    # Most labels are present, and this is asked for at every use of a tensor.
    return label.with_parts(parts) if changed else label


def renumber_part(part: Part, number: Mapping[int, int]) -> Part:
    """The part with site ``s`` called ``number[s]``; its axes are turned so that sites ascend again.

    Args:
        part: Elements over some sites.
        number: New numbers of these sites.
    """
    sites = [number[site] for site in part.sites]
    ascending = sorted(sites)
    if sites == ascending:
        return Part(tuple(sites), part.elements)
    axes = [sites.index(site) for site in ascending]
    turned = part.elements.ids.transpose(axes)
    elements = Elements(turned)
    return Part(tuple(ascending), elements)


def with_sites(
    label: Label, sizes: Sequence[int], parts: Sequence[Part], follow: Follow
) -> Label:
    """The label with other sites.

    Args:
        label: The old label.
        sizes: Size of each new site.
        parts: The parts over the new sites.
        follow: Says what the old sites of its dimensions and pins became.
    """
    dims = [follow(sites) for sites in label.dims]
    pinned = frozenset(follow(label.pinned))
    return replace(
        label,
        dims=tuple(dims),
        sizes=tuple(sizes),
        parts=tuple(parts),
        pinned=pinned,
    )


def split_site(label: Label, site: int, factors: Iterable[int]) -> Label:
    """Split one site into row-major ``factors``.

    Site 1 of a 2×6 tensor split by ``(3, 2)`` becomes the sites 1 and 2; a part ``(1,): [2 3 4 5 6 7]`` becomes
    ``(1, 2): [[2 3], [4 5], [6 7]]``.

    Args:
        label: The label.
        site: The site to split.
        factors: Their product is the size of the site; factors of 1 get no site.
    """
    factors = [factor for factor in factors if factor != 1]
    if len(factors) == 1:
        return label
    more = len(factors) - 1
    new = range(site, site + more + 1)

    def follow(sites: Iterable[int]) -> Sites:
        found: list[int] = []
        for old in sites:
            if old == site:
                found.extend(new)
            else:
                # Those behind move up by as many as were added.
                found.append(old + more if old > site else old)
        return tuple(found)

    parts = []
    for part in label.parts:
        elements = part.elements
        if site in part.sites:
            axis = part.axis_of(site)
            elements = reshape_axes(elements, axis, 1, factors)
        sites = follow(part.sites)
        parts.append(Part(sites, elements))
    sizes = list(label.sizes)
    sizes[site : site + 1] = factors
    return with_sites(label, sizes, parts, follow)


def reshape_axes(
    elements: Elements, first: int, count: int, sizes: Sequence[int]
) -> Elements:
    """The same elements with ``count`` axes from ``first`` on replaced by axes of other ``sizes``."""
    shape = list(elements.shape)
    shape[first : first + count] = sizes
    ids = elements.ids.reshape(shape)
    return Elements(ids)


def pin_dims(
    label: Label, dims: Iterable[int], store: Constraints, reason: str
) -> Label:
    """Fix the order along some dimensions.

    Args:
        label: The label.
        dims: Dimensions whose order matters.
        store: Receives the constraints.
        reason: Why, for the user.
    """
    pinned = label.sites_of(dims)
    parts = []
    for part in label.parts:
        inside = pinned.intersection(part.sites)
        if len(inside) == len(part.sites):
            # Fixed elements tell no more than the pinned sites do: the part goes.
            store.pin(part.elements, reason)
            continue
        for site in sorted(inside):
            axis = part.axis_of(site)
            store.position(part.elements, axis, reason)
        parts.append(part)
    label = label.with_parts(parts)
    return replace(label, pinned=label.pinned | pinned)
