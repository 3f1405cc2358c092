"""Dimensions of labels: put in another order, inserted, dropped, broadcast.

A 2×3 tensor with ``dims = ((0,), (1,))`` gets ``((0,), (), (1,))`` by a new dimension in the middle, 2×1×3: a dimension
of size 1 has no site.  Broadcast to 2×4×3, the new positions are copies, so their order does not matter: they are a new
site without part or pin, ``((0,), (1,), (2,))``, and what was site 1 is site 2 now, since sites ascend.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain

from lightning_rebasin.symmetry.permutations.labels import (
    Label,
    Sites,
    renumber_part,
    with_sites,
)


def arrange(label: Label, dims: Sequence[Sequence[int]]) -> Label:
    """The label with its sites arranged into new ``dims``, renumbered row-major.

    Args:
        label: The label of a tensor, for instance 2×3 with ``dims = ((0,), (1,))``.
        dims: For each new dimension the old sites, each of them at most once: ``[[1], [0]]`` transposes, ``[[0, 1]]``
            flattens.  No part and no pin may lie on a site that is left out.
    """
    arranged = label.with_dims(tuple(sites) for sites in dims)
    order = list(chain.from_iterable(dims))
    as_before = range(len(label.sizes))
    if order == list(as_before):
        return arranged
    places = range(len(order))
    number = dict(zip(order, places, strict=True))

    def follow(sites: Iterable[int]) -> Sites:
        return tuple(number[site] for site in sites)

    sizes = label.sizes_of(order)
    parts = [renumber_part(part, number) for part in label.parts]
    return with_sites(arranged, sizes, parts, follow)


def permute(label: Label, order: Iterable[int]) -> Label:
    """The dimensions ``order``; others may be left out like the sites of :func:`arrange`."""
    dims = [label.dims[dim] for dim in order]
    return arrange(label, dims)


def insert_dim(label: Label, dim: int) -> Label:
    """A new dimension of size 1 before ``dim``."""
    dims = list(label.dims)
    dims.insert(dim, ())
    return label.with_dims(dims)


def insert_dims(label: Label, dims: Iterable[int]) -> Label:
    """New dimensions of size 1, which are the dimensions ``dims`` of the result."""
    for dim in sorted(dims):
        label = insert_dim(label, dim)
    return label


def drop_dim(label: Label, dim: int) -> Label:
    """Remove a dimension of size 1."""
    dims = list(label.dims)
    del dims[dim]
    return label.with_dims(dims)


def insert_pinned(label: Label, dim: int, size: int) -> Label:
    """A new pinned dimension of ``size`` before ``dim``."""
    label = insert_dim(label, dim)
    if size == 1:
        return label
    new = len(label.sizes)
    dims = list(label.dims)
    dims[dim] = (new,)
    sizes = (*label.sizes, size)
    pinned = label.pinned | {new}
    grown = replace(label, sizes=sizes, pinned=pinned)
    # The new site has the last number; arranging gives it that of its place.
    return arrange(grown, dims)


def expand(label: Label, shape: Sequence[int]) -> Label:
    """Broadcast to ``shape``: new dimensions and grown ones are free.

    Args:
        label: A label with at most as many dimensions, which are those at the end of ``shape``.
        shape: The new sizes; -1 keeps a size.
    """
    lead = len(shape) - label.ndim
    label = insert_dims(label, range(lead))
    dims = list(label.dims)
    sizes = list(label.sizes)
    for dim, size in enumerate(shape):
        # What has a site already has that size.
        if dims[dim] or size in (1, -1):
            continue
        dims[dim] = (len(sizes),)
        sizes.append(int(size))
    grown = replace(label, sizes=tuple(sizes))
    return arrange(grown, dims)
