"""Axes that several groups move at once.

The input of the output projection in grouped-query attention is indexed by (key head, query head, dim): the query heads
of one key head permute, and so do its dims, independently.  No single group orders such an axis.  It is split into
row-major sites such that each group depends on some of the sites only; then each group gets a component over its sites.

The smallest case is an axis of 6 units below 2 members of one group p and 3 of another, q, a 2×3 table in a row:

    position   0  1  2  3  4  5
    p          0  0  0  1  1  1      constant in runs of 3: the axis is split into the sites (2, 3)
    q          0  1  2  0  1  2      the same in every run

On sites of 2 and 3 the member of p depends on the first site only, that of q on the second.  So there are two
components, p over site 0 with the positions ``[[0], [1]]`` and q over site 1 with ``[[0], [1], [2]]``.  Whether that is
all is shown by random automorphisms, not by argument.  In ``Linear(3, 2) → ReLU → Linear(2, 2)`` one group moves the
hidden units, so nothing is shared.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import numpy as np

from lightning_rebasin.symmetry.permutations.cells import (
    Cell,
    Cells,
    element_map,
    random_automorphism,
)
from lightning_rebasin.symmetry.permutations.elements import IntArray

#: Random automorphisms under which a split must hold.  Two groups of two units move together in a quarter of the
#: draws, so that 32 miss the pair with probability 1e-4.
DRAWS = 32
#: A group (number of its cell) and one of the ways in which it moves a unit: in ``x ⊗ x`` it does so twice.
Role = tuple[int, int]
#: For each role of a group the member that moves each of some units, positions or classes.
MemberByRole = dict[Role, IntArray]
Sites = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class SharedComponent:
    """How one of several groups moves an axis.

    Args:
        cell: Cell of the group.
        sites: Numbers of the sites on which it depends.
        index: Positions ``(members, copies)`` over these sites.
    """

    cell: int
    sites: Sites
    index: IntArray


@dataclass(frozen=True, eq=False)
class AxisSplit:
    """How several groups move one axis (or several).

    Args:
        sites: The factors of each axis.
        components: One for each role of a group.
    """

    sites: tuple[Sites, ...]
    components: list[SharedComponent]

    @property
    def sizes(self) -> list[int]:
        """Sizes of all sites in order."""
        return _all_sizes(self.sites)


class SharedAxes:
    """Splits axes whose units follow several groups.

    Args:
        found: The cells.
    """

    def __init__(self, found: Cells) -> None:
        self._found = found
        members = [cell.members for cell in found.cells.values()]
        self._place = found.colouring.places(members)
        self._movers: dict[int, MemberByRole] = {}
        # Parents come before their children, so theirs are known.
        for cell in found.cells.values():
            self._movers[cell.number] = self._movers_of(cell)

    def _movers_of(self, cell: Cell) -> MemberByRole:
        """The members that move the units of a cell: those that move its parents, and its own."""
        own: MemberByRole = {}
        for parent, image in zip(cell.parents, cell.maps, strict=True):
            above = self._movers.get(parent, {})
            place = self._place[image]
            for (group, _), member in above.items():
                _add_role(own, group, member[place])
        if cell.kind == "group":
            count = len(cell.members)
            own[cell.number, 0] = np.arange(count)
        return own

    @cached_property
    def _automorphisms(self) -> list[IntArray]:
        draws = []
        for seed in range(DRAWS):
            # Seeded, so that the same model always gives the same spec.
            rng = np.random.default_rng(seed)
            draws.append(random_automorphism(self._found, rng))
        return draws

    def groups_of(self, cell: int) -> list[int]:
        """Cells of the groups that move the units of a cell."""
        groups = [group for group, _ in self._movers[cell]]
        # A group may have several roles, but it has one name.
        return list(dict.fromkeys(groups))

    def split(self, ids: IntArray) -> AxisSplit | None:
        """Find sites and components for some positions.

        Args:
            ids: Elements, one axis per site of the tensor.

        Returns:
            The split, or ``None`` if the groups do not act on sites of their own.
        """
        movers = self._deepest(self._movers_at(ids))
        sites, depends = factorise(list(movers.values()))
        split = AxisSplit(sites, [])
        for (cell, role), own in zip(movers, depends, strict=True):
            member = movers[cell, role].reshape(split.sizes)
            # Along the other sites the member is the same everywhere, so the first place will do.
            window: list[slice | int] = [0] * member.ndim
            for site in own:
                window[site] = slice(None)
            along = member[tuple(window)]
            along = along.reshape(-1)
            members = self._found.cells[cell].members
            index = _positions(along, len(members))
            if index is None or not own:
                return None
            component = SharedComponent(cell, own, index)
            split.components.append(component)
        return split if self._holds(split, ids) else None

    def _movers_at(self, ids: IntArray) -> MemberByRole:
        """By role of a group, ancestors included, the member that moves each position (−1: none)."""
        colouring = self._found.colouring
        cells = colouring.cell_of[ids]
        places = self._place[colouring.classes[ids]]
        nothing = np.full(ids.shape, -1, dtype=np.int64)
        found: MemberByRole = {}
        # Units of several cells may stand on one axis: a concatenation.
        for cell in np.unique(cells).tolist():
            here = cells == cell
            place = places[here]
            movers = self._movers.get(cell, {})
            for role, member in movers.items():
                if role not in found:
                    found[role] = nothing.copy()
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
            # Members of one parent are numbered consecutively.
            parent = member // cell.size
            member = np.where(member >= 0, parent, -1)
        return member

    def _deepest(self, movers: MemberByRole) -> MemberByRole:
        """The same without the ancestors of what moves a position anyway."""
        found = {}
        for (group, role), member in movers.items():
            own = member.copy()
            for (other, _), theirs in movers.items():
                if other == group:
                    continue
                around = self._ancestor(other, theirs, group)
                if around is None:
                    continue
                # The inner group moves these positions, and the outer one with it.
                covered = (theirs >= 0) & (around == member)
                own[covered] = -1
            if (own >= 0).any():
                found[group, role] = own
        return found

    def _holds(self, split: AxisSplit, ids: IntArray) -> bool:
        """Whether the components move the positions as random automorphisms move their elements.

        One is not enough: small groups often stay as they are in a random draw, and then nothing is seen of them.
        """
        moves = self._automorphisms
        return all(self._holds_for(split, ids, move) for move in moves)

    def _holds_for(
        self, split: AxisSplit, ids: IntArray, move: IntArray
    ) -> bool:
        # Where the coordinate along each site comes from, at every position.
        source = np.indices(split.sizes)
        for component in split.components:
            self._move_sites(source, component, move)
        place = np.ravel_multi_index(tuple(source), split.sizes)
        image = element_map(self._found.colouring, move)
        elements = ids.reshape(-1)
        by_sites = elements[place.reshape(-1)]
        by_elements = image[elements]
        return np.array_equal(by_sites, by_elements)

    def _move_sites(
        self, source: IntArray, component: SharedComponent, move: IntArray
    ) -> None:
        """Move the sites of one component as an automorphism moves the members of its group."""
        sizes = source.shape[1:]
        own = [sizes[site] for site in component.sites]
        members = self._found.cells[component.cell].members
        order = self._place[move[members]]
        index = component.index
        # Over the sites of the component alone: where each position comes from, and which are mentioned at all.
        gather = np.arange(np.prod(own))
        gather[index] = index[order]
        mentioned = np.zeros(len(gather), dtype=bool)
        mentioned[index] = True
        # The same for all positions of the axis: sizes of 1 are broadcast along the other sites.
        view = [1] * len(sizes)
        for site in component.sites:
            view[site] = sizes[site]
        here = mentioned.reshape(view)
        coordinates = np.unravel_index(gather, own)
        for site, coordinate in zip(component.sites, coordinates, strict=True):
            new = coordinate.reshape(view)
            old = source[site]
            source[site] = np.where(here, new, old)


def _add_role(own: MemberByRole, group: int, member: IntArray) -> None:
    """Remember that a group moves some units as it moves ``member``, unless that is known."""
    role = 0
    for (other, _), known in own.items():
        if other != group:
            continue
        if np.array_equal(known, member):
            return
        role += 1
    own[group, role] = member


def _positions(member: IntArray, count: int) -> IntArray | None:
    """Positions of each member, ``(count, copies)``; ``None`` if uneven.

    ``[0, 1, 0, 1]`` with two members is ``[[0, 2], [1, 3]]``.
    """
    positions = np.flatnonzero(member >= 0)
    which = member[positions]
    copies = np.bincount(which, minlength=count)
    even = len(positions) / count
    if (copies != even).any():
        return None
    # Stable, so that the copies of a member stay in the order of their positions.
    order = np.argsort(which, kind="stable")
    return positions[order].reshape(count, -1)


def factorise(
    members: Sequence[IntArray],
) -> tuple[tuple[Sites, ...], list[Sites]]:
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
    sizes = _all_sizes(sites)
    depends = []
    for member in members:
        array = member.reshape(sizes)
        own = []
        for site in range(array.ndim):
            if _varies(array, site):
                own.append(site)
        depends.append(tuple(own))
    return tuple(map(tuple, sites)), depends


def _split_once(sites: list[list[int]], members: Sequence[IntArray]) -> bool:
    """Split the first site that some array allows to split; whether there was one."""
    sizes = _all_sizes(sites)
    number = 0
    for factors in sites:
        for place, size in enumerate(factors):
            for member in members:
                array = member.reshape(sizes)
                found = _split(array, number, size)
                if found:
                    factors[place : place + 1] = found
                    return True
            number += 1
    return False


def _split(array: IntArray, axis: int, size: int) -> list[int] | None:
    """Factors of one site: constant in runs (``[0, 0, 1, 1]``), or repeated with a period (``[0, 1, 0, 1]``)."""
    rows = np.moveaxis(array, axis, 0)
    rows = rows.reshape(size, -1)
    divisors = [d for d in range(2, size) if size % d == 0]
    # The longest runs and the shortest period: the site along which nothing changes is as large as can be.
    for divisor in reversed(divisors):
        factors = [size // divisor, divisor]
        blocks = rows.reshape(*factors, -1)
        first = blocks[:, :1]
        if (blocks == first).all():
            return factors
    for divisor in divisors:
        factors = [size // divisor, divisor]
        blocks = rows.reshape(*factors, -1)
        first = blocks[:1]
        if (blocks == first).all():
            return factors
    return None


def _all_sizes(sites: Iterable[Sequence[int]]) -> list[int]:
    """Sizes of the sites of all axes in order."""
    return list(chain.from_iterable(sites))


def _varies(array: IntArray, axis: int) -> bool:
    """Whether an array changes along an axis."""
    first = array.take([0], axis)
    return bool((array != first).any())
