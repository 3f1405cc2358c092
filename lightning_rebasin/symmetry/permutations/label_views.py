"""Row-major reshapes of labels: sites are split and fused until they fit the new shape.

A 2×3 tensor with ``dims = ((0,), (1,))`` viewed as 6 positions keeps its two sites in one dimension, ``((0, 1),)``, and
viewed as 2×3 again it has its old label: a view alone says nothing about any element.

Viewed as 3×2 it is different, because the sites of sizes 2 and 3 have no common factors with 3 and 2.  They are *fused*
to one site of size 6, which is then split into 3×2.  Rows ``[0 1]`` and columns ``[2 3 4]`` cannot be told apart on one
site, so there six new elements are invented, each below one row and one column::

    new elements        row above       column above
    [5 6 7 8 9 10]      [0 0 0 1 1 1]   [2 3 4 2 3 4]

and a permutation of them must map rows onto rows and columns onto columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from lightning_rebasin.symmetry.permutations.elements import Constraints
from lightning_rebasin.symmetry.permutations.labels import (
    Label,
    Part,
    Sites,
    reshape_axes,
    split_site,
    with_sites,
)

_MATTERS = "its position matters"


def view(label: Label, shape: Sequence[int], store: Constraints) -> Label:
    """Row-major reshape.

    Args:
        label: The label of a tensor.
        shape: The new shape, with as many positions.
        store: Receives the constraints where sites must be fused.
    """
    # All sites in one row, from which the new dimensions take what they need.
    row = tuple(range(len(label.sizes)))
    label = label.with_dims([row])
    dims = []
    first = 0
    for size in shape:
        label, stop = _fit_sites(label, first, size, store)
        sites = range(first, stop)
        dims.append(tuple(sites))
        first = stop
    return label.with_dims(dims)


def _fit_sites(
    label: Label, first: int, size: int, store: Constraints
) -> tuple[Label, int]:
    """Make the sites from ``first`` on such that some of them multiply to ``size``; returns where these end."""
    site = first
    need = int(size)
    while need > 1:
        have = label.sizes[site]
        if need % have == 0:
            # The site fits as it is.
            need //= have
            site += 1
        elif have % need == 0:
            left = have // need
            label = split_site(label, site, (need, left))
            need = 1
            site += 1
        else:
            # Neither divides the other: look again at this site and the next as one.
            label = fuse_sites(label, site, 2, store)
    return label, site


def single_site(label: Label, dim: int, store: Constraints) -> Label:
    """The label with the sites of ``dim`` fused into one."""
    sites = label.dims[dim]
    if not sites:
        return label
    first, count = sites[0], len(sites)
    return fuse_sites(label, first, count, store)


def fuse_sites(
    label: Label, first: int, count: int, store: Constraints
) -> Label:
    """Fuse ``count`` consecutive sites into one (they must belong to one dimension, or be about to).

    Args:
        label: The label.
        first: The first of the sites.
        count: How many.
        store: Receives the constraints that hold what the sites said apart.
    """
    if count <= 1:
        return label
    stop = first + count
    fused = range(first, stop)
    label = _with_one_part(label, fused, store)
    size = label.size_of(fused)

    def follow(sites: Iterable[int]) -> Sites:
        later = set()
        for old in sites:
            if old in fused:
                later.add(first)
            else:
                # Those behind move down by as many as vanished.
                later.add(old - count + 1 if old >= stop else old)
        return tuple(sorted(later))

    parts = []
    for part in label.parts:
        elements = part.elements
        if first in part.sites:
            axis = part.axis_of(first)
            elements = reshape_axes(elements, axis, count, [size])
        sites = follow(part.sites)
        parts.append(Part(sites, elements))
    sizes = list(label.sizes)
    sizes[first:stop] = [size]
    return with_sites(label, sizes, parts, follow)


def _with_one_part(label: Label, fused: range, store: Constraints) -> Label:
    """The label with at most one part on the sites ``fused``, which lies over all of them."""
    touching = [part for part in label.parts if part.touches(fused)]
    if not touching:
        return label
    whole = touching[0]
    covers = set(fused).issubset(whole.sites)
    if len(touching) > 1 or not covers:
        label = _joint(label, fused, touching, store)
    else:
        for site in label.pinned.intersection(fused):
            axis = whole.axis_of(site)
            store.position(whole.elements, axis, _MATTERS, defines=True)
    # The elements of the part know which positions are fixed; the fused site as a whole is not.
    pinned = label.pinned.difference(fused)
    return replace(label, pinned=pinned)


def _joint(
    label: Label, fused: range, touching: Sequence[Part], store: Constraints
) -> Label:
    """Replace the parts that touch ``fused`` by one over all their sites, made of new elements below the old ones."""
    covered = set(fused)
    for part in touching:
        covered.update(part.sites)
    sites = tuple(sorted(covered))
    new = store.fresh(label.sizes_of(sites))
    joint = Part(sites, new)
    for part in touching:
        axes = joint.axes_of(part.sites)
        store.relation(new, part.elements, axes, defines=True)
    for site in label.pinned & set(sites):
        axis = joint.axis_of(site)
        store.position(new, axis, _MATTERS, defines=True)
    parts = [part for part in label.parts if part not in touching]
    parts.append(joint)
    return label.with_parts(parts)
