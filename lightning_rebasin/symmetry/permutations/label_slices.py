"""Slices of labels: some positions of one dimension are kept.

Of a 2×3 tensor whose columns are the elements ``[2 3 4]``, ``x[:, 1:]`` keeps the columns ``[3 4]``.  Nothing is
constrained yet: a slice that nobody uses is no constraint.  ``x[:, [0, 0]]`` holds one column twice; its two columns
are new elements, copies of element 2, because no permutation can tell ``[2 2]`` apart.  ``x[:, 1]`` leaves no dimension
behind which the element 3 could hide, so it is *pending*: pinned as soon as the tensor is used.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lightning_rebasin.symmetry.permutations.elements import (
    Constraints,
    Elements,
    IntArray,
)
from lightning_rebasin.symmetry.permutations.label_dims import arrange, expand
from lightning_rebasin.symmetry.permutations.label_views import single_site
from lightning_rebasin.symmetry.permutations.labels import Label, Part, Sites


def take(label: Label, dim: int, index: IntArray, store: Constraints) -> Label:
    """Keep the positions ``index`` of one dimension (a slice, a flip, a constant gather).

    Args:
        label: The label.
        dim: The dimension.
        index: Positions, in their new order; they may repeat.
        store: Receives the constraints of repeated positions.
    """
    if not label.dims[dim]:
        return _repeat_unit(label, dim, len(index))
    everything = np.arange(label.shape[dim])
    if np.array_equal(index, everything):
        return label
    label, site, index = _on_one_site(label, dim, index, store)
    different = np.unique(index)
    repeated = len(different) < len(index)
    parts = []
    for part in label.parts:
        elements = part.elements
        if site in part.sites:
            axis = part.axis_of(site)
            ids = elements.ids.take(index, axis)
            elements = Elements(ids)
            if repeated:
                # No permutation could tell two positions with one element apart.
                elements = _copies(elements, store)
        parts.append(part.with_elements(elements))
    sizes = list(label.sizes)
    sizes[site] = len(index)
    taken = replace(label, sizes=tuple(sizes))
    return _drop_unit(taken.with_parts(parts), site)


def _repeat_unit(label: Label, dim: int, count: int) -> Label:
    """A dimension of size 1, read ``count`` times."""
    if count == 1:
        return label
    shape = list(label.shape)
    shape[dim] = count
    return expand(label, shape)


def _copies(elements: Elements, store: Constraints) -> Elements:
    """New elements, each a copy of the old one at its place."""
    copies = store.fresh(elements.shape)
    axes = tuple(range(len(elements.shape)))
    store.relation(copies, elements, axes, defines=True)
    return copies


def _on_one_site(
    label: Label, dim: int, index: IntArray, store: Constraints
) -> tuple[Label, int, IntArray]:
    """Express positions of a dimension as positions of its outermost site if they are whole blocks, else fuse."""
    outermost, *inner = label.dims[dim]
    if inner:
        size = label.size_of(inner)
        blocks = _whole_blocks(index, size)
        if blocks is not None:
            # Whole rows of a flattened 2×3 tensor: the columns stay as they are.
            return label, outermost, blocks
    label = single_site(label, dim, store)
    (site,) = label.dims[dim]
    return label, site, index


def _whole_blocks(index: IntArray, size: int) -> IntArray | None:
    """Which blocks of ``size`` consecutive positions an index reads, if it reads whole ones.

    Args:
        index: For instance 3, 4, 5, 0, 1, 2, which are the blocks 1, 0 of size 3.
        size: Size of a block.
    """
    if len(index) % size != 0:
        return None
    positions = index.reshape(-1, size)
    blocks = positions[:, 0] // size
    # What the blocks would read if all of them were whole and in their order.
    whole = size * blocks[:, None] + np.arange(size)
    if not np.array_equal(positions, whole):
        return None
    return blocks


def _drop_unit(label: Label, site: int) -> Label:
    """The label without a site of size 1; an element that it alone held is pending.  Other sizes stay."""
    if label.sizes[site] != 1:
        return label
    parts = []
    pending = list(label.pending)
    for part in label.parts:
        if part.sites == (site,):
            pending.append(part.elements)
        elif site in part.sites:
            parts.append(_without_axis(part, site))
        else:
            parts.append(part)
    pinned = label.pinned - {site}
    left = replace(label, pinned=pinned, pending=tuple(pending))
    dims = [_others(sites, site) for sites in label.dims]
    return arrange(left.with_parts(parts), dims)


def _without_axis(part: Part, site: int) -> Part:
    """The part without a site of size 1."""
    axis = part.axis_of(site)
    ids = part.elements.ids.squeeze(axis)
    sites = _others(part.sites, site)
    return Part(sites, Elements(ids))


def _others(sites: Sites, site: int) -> Sites:
    """All sites but one."""
    return tuple(other for other in sites if other != site)
