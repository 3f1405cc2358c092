"""From constraints to groups of interchangeable units.

Cells (units that look alike) are taken from the smallest to the largest.  A cell without a parent is a symmetric group.
A cell whose units lie in blocks of a smaller cell has one symmetric group for each block: a nested group.  Relations
between cells are closed first: two parents that cut a cell into the same blocks are equal, and if one cuts it finer,
its blocks lie in those of the other.  At the end random automorphisms are checked against every table; what breaks one
is pinned, and all is solved again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lightning_rebasin.symmetry.permutations.colouring import Colouring, Refiner, mix
from lightning_rebasin.symmetry.permutations.elements import Block, IntArray, Table

_MOST_ROUNDS = 60
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
class Solution:
    """Cells of a network; ``forced`` are the elements that had to be pinned to make it consistent."""

    colouring: Colouring
    cells: dict[int, Cell]
    forced: IntArray


@dataclass
class _Closure:
    """Equalities and relations implied by the tables."""

    equal: list[tuple[IntArray, IntArray]] = field(default_factory=list)
    relation: list[tuple[IntArray, IntArray]] = field(default_factory=list)
    seen: set[bytes] = field(default_factory=set)

    def arrays(self, what: Literal["equal", "relation"]) -> tuple[IntArray, IntArray]:
        """All pairs."""
        pairs = getattr(self, what)
        empty = np.zeros(0, dtype=np.int64)
        return np.concatenate([empty, *(a for a, _ in pairs)]), np.concatenate(
            [empty, *(b for _, b in pairs)]
        )


def solve(
    size: int, blocks: Sequence[Block], tables: Sequence[Table], seed: int = 0
) -> Solution:
    """Find the cells.

    Args:
        size: Number of elements.
        blocks: Runs of elements that belong to one axis.
        tables: Constraints that count.
        seed: For the random automorphisms of the check.
    """
    refiner = Refiner(size, blocks, tables)
    forced = np.zeros(0, dtype=np.int64)
    rng = np.random.default_rng(seed)
    closure = _Closure()
    for _ in range(_MOST_ROUNDS):
        colouring, maps = _close(refiner, closure, forced)
        cells = _cells(colouring, maps)
        solution = Solution(colouring, cells, forced)
        broken = _broken_elements(solution, refiner, rng)
        if not len(broken):
            return solution
        forced = np.union1d(forced, broken)
    everything = np.arange(size, dtype=np.int64)
    colouring, maps = _close(refiner, closure, everything)
    return Solution(colouring, _cells(colouring, maps), everything)


Maps = dict[int, list[IntArray]]


def _close(
    refiner: Refiner, closure: _Closure, forced: IntArray
) -> tuple[Colouring, Maps]:
    """Refine and add implied constraints until there are no more; returns the parent maps of every cell."""
    while True:
        colouring = refiner.colour(
            closure.arrays("equal"), closure.arrays("relation"), forced
        )
        members = _members(colouring)
        raw = _parent_maps(refiner, closure, colouring, members)
        before = len(closure.equal) + len(closure.relation)
        maps = {
            cell: _imply(closure, colouring, members[cell], parents)
            for cell, parents in raw.items()
        }
        if len(closure.equal) + len(closure.relation) == before:
            return colouring, maps


def _members(colouring: Colouring) -> dict[int, IntArray]:
    """Classes of every cell with more than one, ordered by their first element."""
    order = np.argsort(colouring.cells, kind="stable")
    cells = colouring.cells[order]
    starts = (
        np.flatnonzero(np.r_[True, cells[1:] != cells[:-1]])
        if len(cells)
        else np.zeros(0, dtype=np.int64)
    )
    stops = np.r_[starts[1:], len(cells)]
    first = np.full(len(colouring.cells), len(colouring.classes), dtype=np.int64)
    np.minimum.at(first, colouring.classes, np.arange(len(colouring.classes)))
    result = {}
    for start, stop in zip(starts, stops, strict=True):
        if stop - start > 1:
            classes = order[start:stop]
            result[int(cells[start])] = classes[
                np.argsort(first[classes], kind="stable")
            ]
    return result


def _parent_maps(
    refiner: Refiner,
    closure: _Closure,
    colouring: Colouring,
    members: dict[int, IntArray],
) -> dict[int, list[IntArray]]:
    """For every cell the functions member → parent class that the relations define."""
    extra_child, extra_parent = closure.arrays("relation")
    child = np.r_[refiner.relation.left, extra_child]
    parent = np.r_[refiner.relation.right, extra_parent]
    colours = colouring.colours
    key = np.r_[
        mix(
            refiner.relation.table,
            colours[refiner.relation.left],
            colours[refiner.relation.right],
        ),
        np.broadcast_to(mix(5, np.zeros(1, dtype=np.int64)), len(extra_child)),
    ]
    a, b = colouring.classes[child], colouring.classes[parent]
    cell = colouring.cells[a]
    size = np.bincount(
        colouring.cells, minlength=int(colouring.cells.max(initial=0)) + 1
    )
    keep = (size[cell] > 1) & (a != b)
    a, b, cell, key = a[keep], b[keep], cell[keep], key[keep]
    key = mix(key, colouring.cells[b])
    order = np.lexsort((b, a, key, cell))
    cell, key, a, b = cell[order], key[order], a[order], b[order]
    fresh = np.r_[
        True,
        (cell[1:] != cell[:-1])
        | (key[1:] != key[:-1])
        | (a[1:] != a[:-1])
        | (b[1:] != b[:-1]),
    ]
    fresh = fresh[: len(cell)]
    cell, key, a, b = cell[fresh], key[fresh], a[fresh], b[fresh]
    cuts = np.flatnonzero(
        np.r_[True, (cell[1:] != cell[:-1]) | (key[1:] != key[:-1])][: len(cell)]
    )
    rank = np.zeros(len(colouring.cells), dtype=np.int64)
    for classes in members.values():
        rank[classes] = np.arange(len(classes))
    result: dict[int, list[IntArray]] = {}
    for start, stop in zip(cuts, np.r_[cuts[1:], len(cell)][: len(cuts)], strict=True):
        own = a[start:stop]
        number = int(cell[start])
        if stop - start != len(members[number]) or len(np.unique(own)) != len(own):
            continue  # not a function of the whole cell: the check will tell
        image = np.empty(len(own), dtype=np.int64)
        image[rank[own]] = b[start:stop]
        result.setdefault(number, []).append(image)
    return result


def _imply(
    closure: _Closure, colouring: Colouring, members: IntArray, images: list[IntArray]
) -> list[IntArray]:
    """Close the parent maps of one cell; returns one map for each way that they cut the cell into blocks."""
    representative = colouring.order[colouring.starts[:-1]]
    by_partition: dict[bytes, tuple[IntArray, IntArray]] = {}
    for image in {image.tobytes(): image for image in images}.values():
        _, first, inverse = np.unique(image, return_index=True, return_inverse=True)
        count = len(first)
        if count == 1:
            continue
        if count == len(members):
            closure.equal.append((representative[members], representative[image]))
            continue
        partition = np.argsort(np.argsort(first))[inverse]
        known = by_partition.setdefault(partition.tobytes(), (partition, image))
        if known[1] is not image:
            closure.equal.append(
                (representative[known[1][first]], representative[image[first]])
            )
    for fine, fine_image in by_partition.values():
        for coarse, coarse_image in by_partition.values():
            blocks = int(fine.max()) + 1
            if blocks <= int(coarse.max()) + 1:
                continue
            pairs = np.unique(np.stack([fine_image, coarse_image]), axis=1)
            key = representative[pairs].tobytes()
            if pairs.shape[1] == blocks and key not in closure.seen:
                closure.seen.add(key)
                closure.relation.append(
                    (representative[pairs[0]], representative[pairs[1]])
                )
    return [image for _, image in by_partition.values()]


def _cells(colouring: Colouring, maps: Maps) -> dict[int, Cell]:
    """Decide what each cell is, from the smallest to the largest."""
    result: dict[int, Cell] = {}
    for number, classes in sorted(
        _members(colouring).items(), key=lambda item: (len(item[1]), item[0])
    ):
        result[number] = _cell(number, classes, maps.get(number, []), colouring, result)
    return result


def _cell(
    number: int,
    classes: IntArray,
    maps: list[IntArray],
    colouring: Colouring,
    known: dict[int, Cell],
) -> Cell:
    if not maps:
        return Cell(number, "group", classes, len(classes))
    fine, *coarse = sorted(maps, key=lambda image: -len(np.unique(image)))
    blocks = len(np.unique(fine))
    nested = all(
        len(np.unique(np.stack([fine, image]), axis=1).T) == blocks for image in coarse
    )
    parent = known.get(int(colouring.cells[fine[0]]))
    even = len(classes) % blocks == 0 and bool(
        (np.unique(fine, return_counts=True)[1] == len(classes) // blocks).all()
    )
    if (
        nested
        and even
        and parent is not None
        and parent.kind == "group"
        and len(parent.members) == blocks
    ):
        rank = {int(c): i for i, c in enumerate(parent.members)}
        order = np.argsort([rank.get(int(c), -1) for c in fine], kind="stable")
        return Cell(
            number,
            "group",
            classes[order],
            len(classes) // blocks,
            (parent.number,),
            (fine[order],),
        )
    parents = tuple(int(colouring.cells[image[0]]) for image in maps)
    return Cell(number, "follow", classes, 1, parents, tuple(maps))


def random_automorphism(solution: Solution, rng: np.random.Generator) -> IntArray:
    """A random symmetry as a map of classes; ``-1`` where a unit that follows finds no place."""
    colouring = solution.colouring
    move = np.arange(len(colouring.cells), dtype=np.int64)
    for cell in solution.cells.values():
        if cell.kind == "group":
            table = cell.members.reshape(-1, cell.size)
            shuffled = rng.permuted(table, axis=1)
            if cell.parents:
                parent = solution.cells[cell.parents[0]]
                by_number = np.argsort(parent.members)
                place = np.searchsorted(parent.members[by_number], move[parent.members])
                shuffled = shuffled[by_number[place]]
            move[table] = shuffled
        elif cell.kind == "follow":
            move[cell.members] = _followed(cell, move)
    return move


def _followed(cell: Cell, move: IntArray) -> IntArray:
    """Where the members of a following cell go when their parents move (in natural order among equals)."""
    here, there = np.stack(cell.maps), np.stack([move[image] for image in cell.maps])
    source, target = np.lexsort(here), np.lexsort(there)
    result = np.full(len(cell.members), -1, dtype=np.int64)
    if bool((here[:, source] == there[:, target]).all()):
        result[target] = cell.members[source]
    return result


def _broken_elements(
    solution: Solution, refiner: Refiner, rng: np.random.Generator
) -> IntArray:
    """Elements to pin because a random automorphism breaks a table; empty if all is well."""
    colouring = solution.colouring
    broken: list[IntArray] = []
    for _ in range(_CHECKS):
        move = random_automorphism(solution, rng)
        lost = move < 0
        if lost.any():
            broken.append(_parents_of(solution, colouring.cells[lost]))
            continue
        image = element_map(colouring, move)
        for rows, kind in (
            (refiner.equal, 0),
            (refiner.relation, 1),
            (refiner.position, 2),
        ):
            right = rows.right if kind == 2 else image[rows.right]
            before = np.sort(mix(rows.table, rows.left, rows.right))
            after = mix(rows.table, image[rows.left], right)
            place = np.minimum(np.searchsorted(before, after), max(len(before) - 1, 0))
            bad = before[place] != after if len(before) else np.zeros(0, dtype=bool)
            if bad.any():
                culprit = rows.right[bad] if kind == 1 else rows.left[bad]
                moved = image[culprit] != culprit
                chosen = culprit[moved] if moved.any() else rows.left[bad]
                broken.append(_whole_cells(colouring, chosen))
    return np.unique(np.concatenate(broken)) if broken else np.zeros(0, dtype=np.int64)


def _whole_cells(colouring: Colouring, elements: IntArray) -> IntArray:
    """All elements of the cell of the first of ``elements``."""
    cell = colouring.cells[colouring.classes[elements[0]]]
    return np.flatnonzero(colouring.cells[colouring.classes] == cell)


def _parents_of(solution: Solution, cells: IntArray) -> IntArray:
    """All elements of the parents of some following cells."""
    parents = {
        p for number in np.unique(cells) for p in solution.cells[int(number)].parents
    }
    of_element = solution.colouring.cells[solution.colouring.classes]
    return np.flatnonzero(np.isin(of_element, sorted(parents)))


def element_map(colouring: Colouring, move: IntArray) -> IntArray:
    """The map of elements of a map of classes: the ``k``-th element of a class goes to the ``k``-th of its image."""
    order, starts = colouring.order, colouring.starts
    classes = colouring.classes[order]
    place = np.arange(len(order)) - starts[classes]
    result = np.empty(len(order), dtype=np.int64)
    result[order] = order[np.minimum(starts[move[classes]] + place, len(order) - 1)]
    return result


def moving(solution: Solution) -> NDArray[np.bool_]:
    """Which elements belong to a cell that moves."""
    kinds = np.zeros(int(solution.colouring.cells.max(initial=0)) + 1, dtype=bool)
    kinds[list(solution.cells)] = True
    result: NDArray[np.bool_] = kinds[
        solution.colouring.cells[solution.colouring.classes]
    ]
    return result
