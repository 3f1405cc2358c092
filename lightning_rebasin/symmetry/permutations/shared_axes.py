"""Axes that several groups move at once.

The input of the output projection in grouped-query attention is indexed by (key head, query head, dim): the query heads
of one key head permute, and so do its dims, independently.  No single group orders such an axis.  It is split into
row-major sites such that each group depends on some of the sites only; then each group gets a component over its sites.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from lightning_rebasin.symmetry.permutations.cells import (
    Cells,
    element_map,
    random_automorphism,
)
from lightning_rebasin.symmetry.permutations.elements import IntArray

#: Random automorphisms under which a product must hold.  Two groups of two units move together in a quarter of the
#: draws, so that 32 miss the pair with probability 1e-4.
DRAWS = 32


@dataclass(frozen=True, eq=False)
class Product:
    """How several groups move one axis (or several).

    Args:
        sites: The factors of each axis.
        components: Cell of the group, numbers of its sites, positions ``(members, copies)`` over them.
    """

    sites: tuple[tuple[int, ...], ...]
    components: list[tuple[int, tuple[int, ...], IntArray]]


#: A group (number of its cell) and one of the ways in which it moves a unit: in ``x ⊗ x`` it does so twice.
Role = tuple[int, int]


class SharedAxes:
    """Splits axes whose units follow several groups.

    Args:
        found: The cells.
    """

    def __init__(self, found: Cells) -> None:
        self._found = found
        self._place = np.zeros(len(found.colouring.cells), dtype=np.int64)
        self._coordinates: dict[int, dict[Role, IntArray]] = {}
        for cell in found.cells.values():
            self._place[cell.members] = np.arange(len(cell.members))
            own: dict[Role, IntArray] = {}
            for parent, image in zip(cell.parents, cell.maps, strict=True):
                for (group, _), member in self._coordinates.get(
                    parent, {}
                ).items():
                    _add_role(own, group, member[self._place[image]])
            if cell.kind == "group":
                own[cell.number, 0] = np.arange(
                    len(cell.members), dtype=np.int64
                )
            self._coordinates[cell.number] = own

    @cached_property
    def _automorphisms(self) -> list[IntArray]:
        return [
            random_automorphism(self._found, np.random.default_rng(seed))
            for seed in range(DRAWS)
        ]

    def groups_of(self, cell: int) -> list[int]:
        """Cells of the groups that move the units of a cell."""
        return list(
            dict.fromkeys(group for group, _ in self._coordinates[cell])
        )

    def split(self, ids: IntArray) -> Product | None:
        """Find sites and components for some positions.

        Args:
            ids: Elements, one axis per site of the tensor.

        Returns:
            The product, or ``None`` if the groups do not act on sites of their own.
        """
        members = self._deepest(self._members(ids))
        sites, depends = factorise(list(members.values()))
        flat = [size for factors in sites for size in factors]
        components = []
        for ((cell, _), member), own in zip(
            members.items(), depends, strict=True
        ):
            # Along the other sites the member is the same everywhere, so one place will do.
            window = tuple(
                slice(None) if k in own else 0 for k in range(len(flat))
            )
            along = member.reshape(flat)[window].reshape(-1)
            index = _positions(along, len(self._found.cells[cell].members))
            if index is None or not own:
                return None
            components.append((cell, own, index))
        product = Product(sites, components)
        return product if self._holds(product, ids) else None

    def _members(self, ids: IntArray) -> dict[Role, IntArray]:
        """By role of a group, ancestors included, the member that moves each position (−1: none)."""
        colouring = self._found.colouring
        classes = colouring.classes[ids]
        cells = colouring.cells[classes]
        found: dict[Role, IntArray] = {}
        for cell in np.unique(cells).tolist():
            here = cells == cell
            place = self._place[classes[here]]
            for role, member in self._coordinates.get(cell, {}).items():
                if role not in found:
                    found[role] = np.full(ids.shape, -1, dtype=np.int64)
                found[role][here] = member[place]
        return found

    def _ancestor(
        self, number: int, member: IntArray, ancestor: int
    ) -> IntArray | None:
        """The members of ``ancestor`` around some members of a group; ``None`` if it is not around that group."""
        while number != ancestor:
            cell = self._found.cells[number]
            if not cell.parents:
                return None
            number = cell.parents[0]
            member = np.where(member >= 0, member // cell.size, -1)
        return member

    def _deepest(self, members: dict[Role, IntArray]) -> dict[Role, IntArray]:
        """The same without the ancestors of what moves a position anyway."""
        found = {}
        for (group, role), member in members.items():
            own = member.copy()
            for (other, _), theirs in members.items():
                if other == group:
                    continue
                around = self._ancestor(other, theirs, group)
                if around is not None:
                    # the inner group moves these positions, and the outer one with it
                    own[(theirs >= 0) & (around == member)] = -1
            if (own >= 0).any():
                found[group, role] = own
        return found

    def _holds(self, product: Product, ids: IntArray) -> bool:
        """Whether the components move the positions as random automorphisms move their elements.

        One is not enough: small groups often stay as they are in a random draw, and then nothing is seen of them.
        """
        return all(
            self._holds_for(product, ids, move) for move in self._automorphisms
        )

    def _holds_for(
        self, product: Product, ids: IntArray, move: IntArray
    ) -> bool:
        flat = [size for factors in product.sites for size in factors]
        # Where the coordinate along each site comes from, at every position.
        target = np.indices(flat)
        for cell, own, index in product.components:
            members = self._found.cells[cell].members
            order = self._place[move[members]]
            sizes = [flat[k] for k in own]
            gather = np.arange(int(np.prod(sizes)))
            gather[index] = index[order]
            named = np.zeros(len(gather), dtype=bool)
            named[index] = True
            view = [size if k in own else 1 for k, size in enumerate(flat)]
            here = np.broadcast_to(named.reshape(view), flat)
            for k, coordinate in zip(
                own, np.unravel_index(gather, sizes), strict=True
            ):
                new = np.broadcast_to(coordinate.reshape(view), flat)
                target[k] = np.where(here, new, target[k])
        place = np.ravel_multi_index(tuple(target), flat).reshape(-1)
        image = element_map(self._found.colouring, move)
        elements = ids.reshape(-1)
        return bool((elements[place] == image[elements]).all())


def _add_role(own: dict[Role, IntArray], group: int, member: IntArray) -> None:
    """Remember that a group moves some units as it moves ``member``, unless that is known."""
    known = [array for (other, _), array in own.items() if other == group]
    if not any(np.array_equal(array, member) for array in known):
        own[group, len(known)] = member


def _positions(member: IntArray, count: int) -> IntArray | None:
    """Positions of each member, ``(count, copies)``; ``None`` if uneven.

    ``[0, 1, 0, 1]`` with two members is ``[[0, 2], [1, 3]]``.
    """
    positions = np.flatnonzero(member >= 0)
    which = member[positions]
    copies = np.bincount(which, minlength=count)
    if bool((copies != len(positions) / count).any()):
        return None
    return positions[np.argsort(which, kind="stable")].reshape(count, -1)


def factorise(
    members: list[IntArray],
) -> tuple[tuple[tuple[int, ...], ...], list[tuple[int, ...]]]:
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
    sites = [[size] for size in members[0].shape]
    while _split_once(sites, members):
        pass
    flat = [size for factors in sites for size in factors]
    depends = []
    for member in members:
        array = member.reshape(flat)
        depends.append(tuple(k for k in range(len(flat)) if _varies(array, k)))
    return tuple(map(tuple, sites)), depends


def _split_once(sites: list[list[int]], members: list[IntArray]) -> bool:
    """Split the first site that some array allows to split; whether there was one."""
    flat = [size for factors in sites for size in factors]
    for k, size in enumerate(flat):
        for member in members:
            factors = _split(member.reshape(flat), k, size)
            if factors:
                axis, position = _locate(sites, k)
                sites[axis][position : position + 1] = factors
                return True
    return False


def _split(array: IntArray, axis: int, size: int) -> list[int] | None:
    """Factors of one site: constant in runs (``[0, 0, 1, 1]``), or repeated with a period (``[0, 1, 0, 1]``)."""
    rows = np.moveaxis(array, axis, 0).reshape(size, -1)
    divisors = [d for d in range(2, size) if size % d == 0]
    for divisor in reversed(divisors):
        blocks = rows.reshape(size // divisor, divisor, -1)
        if bool((blocks == blocks[:, :1]).all()):
            return [size // divisor, divisor]
    for divisor in divisors:
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
