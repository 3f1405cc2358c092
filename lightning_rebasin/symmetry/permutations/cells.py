"""From constraints to groups of interchangeable units.

Cells (units that look alike) are taken from the smallest to the largest.  A cell without a parent is a symmetric group.
A cell whose units lie in blocks of a smaller cell has one symmetric group for each block: a nested group.  What the
relations imply is added first (``closure.py``).  At the end random automorphisms are checked against every table; what
breaks one is pinned, and the cells are found again.

In ``Linear(3, 2) → ReLU → Linear(2, 2)`` the colours of the seven classes (``colouring.py``) leave one cell with more
than one class, that of the two hidden units ``{0, 5, 9}`` and ``{1, 6, 10}``.  Nothing lies above it, so it is a group
of size 2.  The inputs and the outputs are cells of one class each, which have nothing to move.  An automorphism that
swaps the classes moves the elements 0 ↔ 1, 5 ↔ 6 and 9 ↔ 10, and every table stays the same set of rows.

In attention with 2 heads of 3 dims the 6 value units are one cell, and a relation gives each of them its head as a
parent: ``[h0, h0, h0, h1, h1, h1]`` is the *parent map* of the cell.  So it is a group of size 3 inside each head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lightning_rebasin.symmetry.permutations.closure import (
    Closure,
    close,
    members_of,
)
from lightning_rebasin.symmetry.permutations.colouring import (
    Colouring,
    Refiner,
    Rows,
    mix,
)
from lightning_rebasin.symmetry.permutations.elements import (
    ElementRun,
    IntArray,
    Table,
)

#: Each round pins at least one cell more.
_MOST_ROUNDS = 60
#: Random automorphisms that are held against the tables in each round.
_CHECKS = 2
_NONE: IntArray = np.zeros(0, dtype=np.int64)
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Cell:
    """Classes that can only change places among themselves.

    Args:
        number: Number of the cell.
        kind: ``"group"``: symmetric, within each member of ``parents[0]`` if there is one; ``"follow"``:
            every unit is determined by its parents.
        members: Its classes; of a group, ``size`` consecutive ones for every member of the parent.
        size: Units in one set of a group.
        parents: Numbers of the parent cells.
        maps: For each parent, the parent class of each member.
    """

    number: int
    kind: Literal["group", "follow"]
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
    closure = Closure()
    for _ in range(_MOST_ROUNDS):
        # What was implied stays: pinning more never takes an equality away.
        found = _cells_given(refiner, closure, forced)
        broken = _broken_elements(found, refiner, rng)
        if not len(broken):
            return found
        forced = np.union1d(forced, broken)
    # Nothing that was tried is consistent, so nothing moves.
    everything = np.arange(size, dtype=np.int64)
    return _cells_given(refiner, closure, everything)


def _cells_given(
    refiner: Refiner, closure: Closure, forced: IntArray
) -> Cells:
    """The cells when some elements are pinned."""
    colouring, maps = close(refiner, closure, forced)
    members = members_of(colouring)
    cells: dict[int, Cell] = {}
    # From the smallest to the largest: parents have fewer units than what lies below them.
    by_size = sorted(members)
    by_size.sort(key=lambda number: len(members[number]))
    for number in by_size:
        own = members[number]
        above = maps.get(number, [])
        cells[number] = _cell(number, own, above, colouring, cells)
    return Cells(colouring, cells, forced)


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
    fine, *coarse = sorted(maps, key=_blocks, reverse=True)
    above = int(colouring.cells[fine[0]])
    parent = known.get(above)
    if parent is None or not _is_nested(classes, fine, coarse, parent):
        # All members of a cell have their parents in one cell, so the first one tells.
        first = np.stack(maps)[:, 0]
        parents = colouring.cells[first].tolist()
        return Cell(number, "follow", classes, 1, tuple(parents), tuple(maps))
    # Members of one parent stand together, in the order of the parents.
    place = colouring.places([parent.members])
    order = np.argsort(place[fine], kind="stable")
    size = len(classes) // len(parent.members)
    own = classes[order]
    image = fine[order]
    return Cell(number, "group", own, size, (above,), (image,))


def _is_nested(
    classes: IntArray, fine: IntArray, coarse: list[IntArray], parent: Cell
) -> bool:
    """Whether a cell is one set of units inside every member of its finest parent, and of no other."""
    _, counts = np.unique(fine, return_counts=True)
    blocks = len(counts)
    if parent.kind != "group" or len(parent.members) != blocks:
        return False
    # Every coarser parent must be an ancestor through the finest one.
    for image in coarse:
        both = np.stack([fine, image])
        pairs = np.unique(both, axis=1)
        if pairs.shape[1] != blocks:
            return False
    even = len(classes) / blocks
    return bool((counts == even).all())


def _blocks(image: IntArray) -> int:
    """Into how many blocks a parent map cuts a cell."""
    return len(np.unique(image))


def random_automorphism(found: Cells, rng: np.random.Generator) -> IntArray:
    """A random symmetry as a map of classes; ``-1`` where a unit that follows finds no place."""
    move = np.arange(found.colouring.count)
    # Parents come before their children, for they are smaller cells.
    for cell in found.cells.values():
        if cell.kind == "group":
            move[cell.members] = _shuffled(found, cell, move, rng)
        elif cell.kind == "follow":
            move[cell.members] = _followed(cell, move)
    return move


def _shuffled(
    found: Cells, cell: Cell, move: IntArray, rng: np.random.Generator
) -> IntArray:
    """Where the members of a group go: each set is shuffled, and the sets go where their parents go."""
    sets = cell.members.reshape(-1, cell.size)
    sets = rng.permuted(sets, axis=1)
    if cell.parents:
        parents = found.cells[cell.parents[0]].members
        place = found.colouring.places([parents])
        sets = sets[place[move[parents]]]
    return sets.reshape(-1)


def _followed(cell: Cell, move: IntArray) -> IntArray:
    """Where the members of a following cell go when their parents move (in natural order among equals)."""
    here = np.stack(cell.maps)
    there = move[here]
    source = np.lexsort(here)
    target = np.lexsort(there)
    result = np.full_like(cell.members, -1)
    # There is a place among the moved parents only if some unit has had these parents before.
    same = here[:, source] == there[:, target]
    if same.all():
        result[target] = cell.members[source]
    return result


def _broken_elements(
    found: Cells, refiner: Refiner, rng: np.random.Generator
) -> IntArray:
    """Elements to pin because a random automorphism breaks a table; empty if all is well."""
    broken: list[IntArray] = [_NONE]
    for _ in range(_CHECKS):
        move = random_automorphism(found, rng)
        lost = found.colouring.cells[move < 0]
        if len(lost):
            broken.append(_parents_of(found, lost))
            continue
        image = element_map(found.colouring, move)
        for rows in (refiner.equal, refiner.relation, refiner.position):
            suspects = _suspects(rows, image, refiner)
            if len(suspects):
                # One cell at a time: the others may be in order once it stays.
                broken.append(_whole_cell(found.colouring, suspects[0]))
    return np.unique(np.concatenate(broken))


def _suspects(rows: Rows, image: IntArray, refiner: Refiner) -> IntArray:
    """Elements that may be to blame for rows that the moved table has and the table has not."""
    # The right column of a position table holds values, which do not move.
    right = rows.right if rows is refiner.position else image[rows.right]
    bad = _rows_that_are_new(rows, image[rows.left], right)
    if not bad.any():
        return _NONE
    # A child out of place says that its parent moved wrongly.
    blamed = rows.right if rows is refiner.relation else rows.left
    blamed = blamed[bad]
    moved = blamed[image[blamed] != blamed]
    return moved if len(moved) else rows.left[bad]


def _rows_that_are_new(
    rows: Rows, left: IntArray, right: IntArray
) -> BoolArray:
    """Which rows of the moved table are not rows of the table: a symmetry maps a table onto itself."""
    if not len(rows.left):
        return np.zeros(0, dtype=bool)
    before = mix(rows.table, rows.left, rows.right)
    before.sort()
    after = mix(rows.table, left, right)
    place = np.searchsorted(before, after)
    # What is larger than every row is new in any case; any valid place shows it.
    place = np.minimum(place, len(before) - 1)
    new: BoolArray = before[place] != after
    return new


def _whole_cell(colouring: Colouring, element: int) -> IntArray:
    """All elements of the cell of one of them."""
    of_element = colouring.cell_of
    return np.flatnonzero(of_element == of_element[element])


def _parents_of(found: Cells, cells: IntArray) -> IntArray:
    """All elements of the parents of some following cells."""
    parents: set[int] = set()
    for number in np.unique(cells):
        parents.update(found.cells[int(number)].parents)
    above = np.isin(found.colouring.cell_of, sorted(parents))
    return np.flatnonzero(above)


def element_map(colouring: Colouring, move: IntArray) -> IntArray:
    """The map of elements of a map of classes: the ``k``-th element of a class goes to the ``k``-th of its image."""
    order = colouring.order
    starts = colouring.starts
    count = len(order)
    classes = colouring.classes[order]
    place = np.arange(count) - starts[classes]
    there = starts[move[classes]] + place
    # Classes of one cell are equally large where the colouring is right; where not, the check must see it, not crash.
    there = np.minimum(there, count - 1)
    result = np.empty(count, dtype=np.int64)
    result[order] = order[there]
    return result


def moving(found: Cells) -> BoolArray:
    """Which elements belong to a cell that moves."""
    cell_of = found.colouring.cell_of
    moves = np.zeros(cell_of.max(initial=0) + 1, dtype=bool)
    moves[list(found.cells)] = True
    result: BoolArray = moves[cell_of]
    return result
