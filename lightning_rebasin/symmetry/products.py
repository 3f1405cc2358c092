"""Axes that several groups move at once.

The input of the output projection in grouped-query attention is indexed by (key head, query head, dim): the query heads
of one key head permute, and so do its dims, independently.  No single group orders such an axis.  It is split into
row-major sites such that each group depends on some of the sites only; then each group gets a component over its sites.
"""

from __future__ import annotations

import numpy as np

from lightning_rebasin.symmetry.elements import IntArray


def factorise(members: list[IntArray]) -> tuple[tuple[tuple[int, ...], ...], list[tuple[int, ...]]]:
    """Split axes until each array depends on whole sites only.

    Args:
        members: Arrays of one shape: for each group the member that moves each position.

    Returns:
        The factors of each axis, and for each array the numbers of the sites on which it depends.

    Example:
        >>> rows, columns = np.divmod(np.arange(6), 3)
        >>> factorise([rows, columns])
        (((2, 3),), [(0,), (1,)])
    """
    sites = [[n] for n in members[0].shape]
    grown = True
    while grown:
        grown = False
        flat = [n for factors in sites for n in factors]
        for k, size in enumerate(flat):
            split = next((f for f in (_split(m.reshape(flat), k, size) for m in members) if f), None)
            if split:
                axis, position = _locate(sites, k)
                sites[axis][position : position + 1] = split
                grown = True
                break
    flat = [n for factors in sites for n in factors]
    depends = [tuple(k for k in range(len(flat)) if _varies(m.reshape(flat), k)) for m in members]
    return tuple(tuple(f) for f in sites), depends


def _split(array: IntArray, axis: int, size: int) -> list[int] | None:
    """Factors of one site: constant in runs, or repeated with a period."""
    rows = np.moveaxis(array, axis, 0).reshape(size, -1)
    for divisor in range(size - 1, 1, -1):
        if size % divisor:
            continue
        blocks = rows.reshape(size // divisor, divisor, -1)
        if bool((blocks == blocks[:, :1]).all()):
            return [size // divisor, divisor]
    for divisor in range(2, size):
        if size % divisor:
            continue
        blocks = rows.reshape(size // divisor, divisor, -1)
        if bool((blocks == blocks[:1]).all()):
            return [size // divisor, divisor]
    return None


def _varies(array: IntArray, axis: int) -> bool:
    return bool((array != array.take([0], axis)).any())


def _locate(sites: list[list[int]], number: int) -> tuple[int, int]:
    for axis, factors in enumerate(sites):
        if number < len(factors):
            return axis, number
        number -= len(factors)
    raise IndexError(number)


def component_index(member: IntArray, depends: tuple[int, ...], count: int) -> IntArray | None:
    """Flat positions of each member over the sites on which it depends, ``(count, copies)``; ``None`` if uneven.

    Args:
        member: The member of each position, one axis per site.
        depends: Sites on which it depends.
        count: Number of members.
    """
    index = tuple(slice(None) if k in depends else 0 for k in range(member.ndim))
    flat = member[index].reshape(-1)
    if len(flat) % count or bool((np.bincount(flat, minlength=count) != len(flat) // count).any()):
        return None
    return np.argsort(flat, kind="stable").reshape(count, -1)
