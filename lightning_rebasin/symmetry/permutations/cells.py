"""From constraints to groups of interchangeable units.

Cells (units that look alike) are taken from the smallest to the largest.  A cell without a parent is a symmetric group.
A cell whose units lie in blocks of a smaller cell has one symmetric group for each block: a nested group.  Relations
between cells are closed first: two parents that cut a cell into the same blocks are equal, and if one cuts it finer,
its blocks lie in those of the other.  At the end random automorphisms are checked against every table; what breaks one
is pinned, and the cells are found again.

In ``Linear(3, 4) → relu → Linear(4, 2)`` the four hidden units are four classes (row i of the first weight, entry i of
its bias, column i of the second weight) of one cell without parents: a group of size 4.  The inputs and outputs are
cells of one class each, because every position of them is pinned.  In attention with 2 heads of 3 dims the 6 value
units are one cell with a parent map to the cell of the 2 heads, so they are one group of size 3 inside each head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lightning_rebasin.symmetry.permutations.colouring import (
    Colouring,
    Hash,
    Refiner,
    Rows,
    mix,
)
from lightning_rebasin.symmetry.permutations.elements import (
    ElementRun,
    IntArray,
    Table,
)

_MOST_ROUNDS = 60
_NONE: IntArray = np.zeros(0, dtype=np.int64)
_CHECKS = 2


@dataclass(frozen=True, eq=False)
class Cell:
    """Classes that can only change places among themselves.

    Args:
        number: Number of the cell.
        kind: ``"fixed"``; ``"group"``: symmetric, within each member of ``parents[0]`` if there is one; ``"follow"``:
            every unit is determined by its parents.
        members: Its classes; of a group, ``size`` consecutive ones for every member of the parent.
        size: Units in one set of a group.
        parents: Numbers of the parent cells.
        maps: For each parent, the parent class of each member.
    """

    number: int
    kind: Literal["fixed", "group", "follow"]
    members: IntArray
    size: int
    parents: tuple[int, ...] = ()
    maps: tuple[IntArray, ...] = ()


@dataclass(frozen=True, eq=False)
class Cells:
    """The cells of a network; ``forced`` are the elements that had to be pinned to make it consistent."""

    colouring: Colouring
    cells: dict[int, Cell]
    forced: IntArray


@dataclass
class _Closure:
    """Equalities and relations implied by the tables."""

    equal: list[tuple[IntArray, IntArray]] = field(default_factory=list)
    relation: list[tuple[IntArray, IntArray]] = field(default_factory=list)
    seen: set[bytes] = field(default_factory=set)

    @property
    def size(self) -> int:
        """How much is implied: it only grows."""
        return len(self.equal) + len(self.relation)

    def arrays(
        self, what: Literal["equal", "relation"]
    ) -> tuple[IntArray, IntArray]:
        """All pairs."""
        pairs = self.equal if what == "equal" else self.relation
        left, right = [_NONE], [_NONE]
        for a, b in pairs:
            left.append(a)
            right.append(b)
        return np.concatenate(left), np.concatenate(right)


#: For each cell, the parent class of each of its members, once for each way of having parents.
Maps = dict[int, list[IntArray]]


def find_cells(
    size: int,
    runs: Sequence[ElementRun],
    tables: Sequence[Table],
    seed: int = 0,
) -> Cells:
    """Find the cells.

    Args:
        size: Number of elements.
        runs: Runs of elements that belong to one axis.
        tables: Constraints that count.
        seed: For the random automorphisms of the check.
    """
    refiner = Refiner(size, runs, tables)
    forced = _NONE
    rng = np.random.default_rng(seed)
    closure = _Closure()
    for _ in range(_MOST_ROUNDS):
        found = _cells_given(refiner, closure, forced)
        broken = _broken_elements(found, refiner, rng)
        if not len(broken):
            return found
        forced = np.union1d(forced, broken)
    # Nothing that was tried is consistent, so nothing moves.
    return _cells_given(refiner, closure, np.arange(size, dtype=np.int64))


def _cells_given(
    refiner: Refiner, closure: _Closure, forced: IntArray
) -> Cells:
    """The cells when some elements are pinned."""
    colouring, maps = _close(refiner, closure, forced)
    return Cells(colouring, _decide(colouring, maps), forced)


def _close(
    refiner: Refiner, closure: _Closure, forced: IntArray
) -> tuple[Colouring, Maps]:
    """Refine and add implied constraints until there are no more; returns the parent maps of every cell."""
    while True:
        equal, relation = closure.arrays("equal"), closure.arrays("relation")
        colouring = refiner.colour(equal, relation, forced)
        members = _members(colouring)
        before = closure.size
        maps = {}
        for cell, images in _parent_maps(
            refiner, closure, colouring, members
        ).items():
            maps[cell] = _imply(closure, colouring, members[cell], images)
        if closure.size == before:
            return colouring, maps


def _members(colouring: Colouring) -> dict[int, IntArray]:
    """Classes of every cell with more than one, ordered by their first element."""
    count = len(colouring.classes)
    first = np.full(len(colouring.cells), count, dtype=np.int64)
    np.minimum.at(first, colouring.classes, np.arange(count))
    order = np.argsort(colouring.cells, kind="stable")
    result = {}
    for run in _runs(colouring.cells[order]):
        classes = order[run]
        if len(classes) > 1:
            cell = int(colouring.cells[classes[0]])
            result[cell] = classes[np.argsort(first[classes], kind="stable")]
    return result


def _runs(*columns: IntArray | Hash) -> list[slice]:
    """Where sorted columns hold the same values: ``[3, 3, 5]`` gives the slices 0:2 and 2:3."""
    starts: list[int] = np.flatnonzero(_new_values(*columns)).tolist()
    bounds = [*starts, len(columns[0])]
    return [slice(start, stop) for start, stop in pairwise(bounds)]


def _new_values(*columns: IntArray | Hash) -> NDArray[np.bool_]:
    """Which rows of sorted columns differ from the row before."""
    new = np.zeros(len(columns[0]), dtype=bool)
    new[:1] = True
    for column in columns:
        new[1:] |= column[1:] != column[:-1]
    return new


def _parent_maps(
    refiner: Refiner,
    closure: _Closure,
    colouring: Colouring,
    members: dict[int, IntArray],
) -> Maps:
    """For every cell the functions member → parent class that the relations define.

    Rows of one relation table whose elements have the same colours describe one function, so they have one key.
    """
    extra_child, extra_parent = closure.arrays("relation")
    rows = refiner.relation
    own_key = mix(
        rows.table, colouring.colours[rows.left], colouring.colours[rows.right]
    )
    extra_key = np.broadcast_to(
        mix(5, np.zeros(1, dtype=np.int64)), len(extra_child)
    )
    key = np.concatenate([own_key, extra_key])
    child = colouring.classes[np.concatenate([rows.left, extra_child])]
    parent = colouring.classes[np.concatenate([rows.right, extra_parent])]

    cell = colouring.cells[child]
    # Cells of one class have nothing to move, and a class is not its own parent.
    keep = np.isin(cell, list(members)) & (child != parent)
    cell, child, parent, key = cell[keep], child[keep], parent[keep], key[keep]
    key = mix(key, colouring.cells[parent])
    order = np.lexsort((parent, child, key, cell))
    order = order[
        _new_values(cell[order], key[order], child[order], parent[order])
    ]
    cell, key, child, parent = (
        cell[order],
        key[order],
        child[order],
        parent[order],
    )

    rank = np.zeros(len(colouring.cells), dtype=np.int64)
    for classes in members.values():
        rank[classes] = np.arange(len(classes))
    result: Maps = {}
    for run in _runs(cell, key):
        own, number = child[run], int(cell[run.start])
        if len(own) != len(members[number]) or len(np.unique(own)) != len(own):
            continue  # not a function of the whole cell: the check will tell
        image = np.empty(len(own), dtype=np.int64)
        image[rank[own]] = parent[run]
        result.setdefault(number, []).append(image)
    return result


def _imply(
    closure: _Closure,
    colouring: Colouring,
    members: IntArray,
    images: list[IntArray],
) -> list[IntArray]:
    """Close the parent maps of one cell; returns one map for each way that they cut the cell into blocks."""
    representative = colouring.order[colouring.starts[:-1]]
    by_partition: dict[bytes, _Cut] = {}
    for image in {image.tobytes(): image for image in images}.values():
        cut = _Cut.of(image)
        if cut.blocks == 1:
            continue
        if cut.blocks == len(members):
            # every member has a parent of its own: member and parent are one unit
            closure.equal.append(
                (representative[members], representative[image])
            )
            continue
        known = by_partition.setdefault(cut.partition.tobytes(), cut)
        if known is not cut:
            # two parents that cut the cell into the same blocks are one unit each
            theirs, mine = known.image[cut.first], image[cut.first]
            closure.equal.append(
                (representative[theirs], representative[mine])
            )
    for fine in by_partition.values():
        for coarse in by_partition.values():
            if fine.blocks > coarse.blocks:
                _relate_blocks(closure, representative, fine, coarse)
    return [cut.image for cut in by_partition.values()]


@dataclass(frozen=True, eq=False)
class _Cut:
    """One way of cutting the members of a cell into blocks: members with one parent lie in one block.

    Args:
        image: The parent class of each member.
        first: The first member of each block.
        partition: The block of each member, numbered by first appearance.
    """

    image: IntArray
    first: IntArray
    partition: IntArray

    @classmethod
    def of(cls, image: IntArray) -> _Cut:
        """The cut that a parent map makes: ``[7, 7, 4]`` has the partition ``[0, 0, 1]``."""
        _, first, inverse = np.unique(
            image, return_index=True, return_inverse=True
        )
        number = np.argsort(np.argsort(first))
        return cls(image, first, number[inverse])

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return len(self.first)


def _relate_blocks(
    closure: _Closure, representative: IntArray, fine: _Cut, coarse: _Cut
) -> None:
    """If every block of one cut lies in one block of the other, so do their parents."""
    pairs = np.unique(np.stack([fine.image, coarse.image]), axis=1)
    key = representative[pairs].tobytes()
    if pairs.shape[1] == fine.blocks and key not in closure.seen:
        closure.seen.add(key)
        child, parent = representative[pairs[0]], representative[pairs[1]]
        closure.relation.append((child, parent))


def _decide(colouring: Colouring, maps: Maps) -> dict[int, Cell]:
    """Decide what each cell is, from the smallest to the largest: parents have fewer units."""
    result: dict[int, Cell] = {}
    members = _members(colouring)
    for number in sorted(members, key=lambda cell: (len(members[cell]), cell)):
        own = maps.get(number, [])
        result[number] = _cell(number, members[number], own, colouring, result)
    return result


def _cell(
    number: int,
    classes: IntArray,
    maps: list[IntArray],
    colouring: Colouring,
    known: dict[int, Cell],
) -> Cell:
    """A group, a group inside another one, or units that follow their parents."""
    if not maps:
        return Cell(number, "group", classes, len(classes))
    fine, *coarse = sorted(maps, key=lambda image: -len(np.unique(image)))
    parent = known.get(int(colouring.cells[fine[0]]))
    if parent is None or not _is_nested(classes, fine, coarse, parent):
        parents = tuple(int(colouring.cells[image[0]]) for image in maps)
        return Cell(number, "follow", classes, 1, parents, tuple(maps))
    rank = {int(c): i for i, c in enumerate(parent.members)}
    order = np.argsort([rank.get(int(c), -1) for c in fine], kind="stable")
    size = len(classes) // len(parent.members)
    return Cell(
        number, "group", classes[order], size, (parent.number,), (fine[order],)
    )


def _is_nested(
    classes: IntArray, fine: IntArray, coarse: list[IntArray], parent: Cell
) -> bool:
    """Whether a cell is one set of units inside every member of its finest parent, and of no other."""
    _, counts = np.unique(fine, return_counts=True)
    blocks = len(counts)
    # Every coarser parent must be an ancestor through the finest one.
    for image in coarse:
        if len(np.unique(np.stack([fine, image]), axis=1).T) != blocks:
            return False
    even = bool((counts == len(classes) / blocks).all())
    return even and parent.kind == "group" and len(parent.members) == blocks


def random_automorphism(found: Cells, rng: np.random.Generator) -> IntArray:
    """A random symmetry as a map of classes; ``-1`` where a unit that follows finds no place."""
    colouring = found.colouring
    move = np.arange(len(colouring.cells), dtype=np.int64)
    for cell in found.cells.values():
        if cell.kind == "group":
            table = cell.members.reshape(-1, cell.size)
            shuffled = rng.permuted(table, axis=1)
            if cell.parents:
                parent = found.cells[cell.parents[0]]
                by_number = np.argsort(parent.members)
                place = np.searchsorted(
                    parent.members[by_number], move[parent.members]
                )
                shuffled = shuffled[by_number[place]]
            move[table] = shuffled
        elif cell.kind == "follow":
            move[cell.members] = _followed(cell, move)
    return move


def _followed(cell: Cell, move: IntArray) -> IntArray:
    """Where the members of a following cell go when their parents move (in natural order among equals)."""
    here, there = (
        np.stack(cell.maps),
        np.stack([move[image] for image in cell.maps]),
    )
    source, target = np.lexsort(here), np.lexsort(there)
    result = np.full(len(cell.members), -1, dtype=np.int64)
    if bool((here[:, source] == there[:, target]).all()):
        result[target] = cell.members[source]
    return result


def _broken_elements(
    found: Cells, refiner: Refiner, rng: np.random.Generator
) -> IntArray:
    """Elements to pin because a random automorphism breaks a table; empty if all is well."""
    colouring = found.colouring
    broken: list[IntArray] = [_NONE]
    for _ in range(_CHECKS):
        move = random_automorphism(found, rng)
        lost = move < 0
        if lost.any():
            broken.append(_parents_of(found, colouring.cells[lost]))
            continue
        image = element_map(colouring, move)
        for rows in (refiner.equal, refiner.relation, refiner.position):
            # The right column of a position table holds values, which do not move.
            right = (
                rows.right if rows is refiner.position else image[rows.right]
            )
            bad = _rows_that_are_new(rows, image[rows.left], right)
            if bad.any():
                # A child out of place says that its parent moved wrongly.
                suspect = rows.right if rows is refiner.relation else rows.left
                moved = suspect[bad & (image[suspect] != suspect)]
                chosen = moved if len(moved) else rows.left[bad]
                broken.append(_whole_cells(colouring, chosen))
    return np.unique(np.concatenate(broken))


def _rows_that_are_new(
    rows: Rows, left: IntArray, right: IntArray
) -> NDArray[np.bool_]:
    """Which rows of the moved table are not rows of the table: a symmetry maps a table onto itself."""
    if not len(rows.left):
        return np.zeros(0, dtype=bool)
    before = np.sort(mix(rows.table, rows.left, rows.right))
    after = mix(rows.table, left, right)
    place = np.minimum(np.searchsorted(before, after), len(before) - 1)
    new: NDArray[np.bool_] = before[place] != after
    return new


def _whole_cells(colouring: Colouring, elements: IntArray) -> IntArray:
    """All elements of the cell of the first of ``elements``."""
    cell = colouring.cells[colouring.classes[elements[0]]]
    return np.flatnonzero(colouring.cells[colouring.classes] == cell)


def _parents_of(found: Cells, cells: IntArray) -> IntArray:
    """All elements of the parents of some following cells."""
    parents: set[int] = set()
    for number in np.unique(cells):
        parents.update(found.cells[int(number)].parents)
    of_element = found.colouring.cells[found.colouring.classes]
    return np.flatnonzero(np.isin(of_element, sorted(parents)))


def element_map(colouring: Colouring, move: IntArray) -> IntArray:
    """The map of elements of a map of classes: the ``k``-th element of a class goes to the ``k``-th of its image."""
    order, starts = colouring.order, colouring.starts
    classes = colouring.classes[order]
    place = np.arange(len(order)) - starts[classes]
    result = np.empty(len(order), dtype=np.int64)
    result[order] = order[
        np.minimum(starts[move[classes]] + place, len(order) - 1)
    ]
    return result


def moving(found: Cells) -> NDArray[np.bool_]:
    """Which elements belong to a cell that moves."""
    kinds = np.zeros(int(found.colouring.cells.max(initial=0)) + 1, dtype=bool)
    kinds[list(found.cells)] = True
    result: NDArray[np.bool_] = kinds[
        found.colouring.cells[found.colouring.classes]
    ]
    return result
