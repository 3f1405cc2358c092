"""The constraints that follow from the tables: which parents of a cell are equal, and which lie in each other.

A relation table gives every unit of a cell a parent.  Two tables may do so in different words: the value units of
attention lie below the heads of the projection before and below those of the projection behind.  Parents that cut a
cell into the same blocks are one unit; if one cuts it finer, its blocks lie in those of the other.  What is implied is
added to the tables and the colours are refined again, until nothing new follows.

Two heads of three value units, with the parent maps ``[h0, h0, h0, h1, h1, h1]`` (before) and ``[k0, k0, k0, k1, k1,
k1]`` (behind): both have the partition ``[0, 0, 0, 1, 1, 1]``, so that h0 ≡ k0 and h1 ≡ k1, and the second map tells
nothing more.  In ``Linear(3, 2) → ReLU → Linear(2, 2)`` there is no relation, so nothing is implied.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise, permutations

import numpy as np
from numpy.typing import NDArray

from lightning_rebasin.symmetry.permutations.colouring import (
    Colouring,
    Hash,
    Pairs,
    Refiner,
    Rows,
    mix,
)
from lightning_rebasin.symmetry.permutations.elements import IntArray

BoolArray = NDArray[np.bool_]
#: For each cell, the parent class of each of its members, once for each way of having parents.
Maps = dict[int, list[IntArray]]


@dataclass
class ImpliedPairs:
    """Pairs of elements that stand for their classes; the columns are joined when they are asked for."""

    left: list[IntArray] = field(default_factory=list)
    right: list[IntArray] = field(default_factory=list)

    def add(self, left: IntArray, right: IntArray) -> None:
        """Remember some pairs."""
        self.left.append(left)
        self.right.append(right)

    def columns(self) -> Pairs:
        """All pairs as two columns."""
        # An empty column first: there may be no pairs at all.
        nothing = np.zeros(0, dtype=np.int64)
        left = np.concatenate([nothing, *self.left])
        right = np.concatenate([nothing, *self.right])
        return left, right


@dataclass
class Closure:
    """Equalities and relations implied by the tables."""

    equal: ImpliedPairs = field(default_factory=ImpliedPairs)
    relation: ImpliedPairs = field(default_factory=ImpliedPairs)
    seen: set[bytes] = field(default_factory=set)

    @property
    def size(self) -> int:
        """How much is implied: it only grows."""
        equal = len(self.equal.left)
        relation = len(self.relation.left)
        return equal + relation


def close(
    refiner: Refiner, closure: Closure, forced: IntArray
) -> tuple[Colouring, Maps]:
    """Refine and add implied constraints until there are no more.

    Args:
        refiner: The tables.
        closure: What is implied so far; more is added.
        forced: Elements that must stay where they are.

    Returns:
        The colouring, and for each cell its parent maps, one for each way in which they cut it into blocks.
    """
    while True:
        equal = closure.equal.columns()
        relation = closure.relation.columns()
        colouring = refiner.colour(equal, relation, forced)
        members = members_of(colouring)
        images = _parent_maps(refiner, relation, colouring, members)
        before = closure.size
        maps = {}
        for cell, own in images.items():
            cuts = _cuts(closure, colouring, members[cell], own)
            _relate(closure, colouring, cuts)
            maps[cell] = [cut.image for cut in cuts]
        if closure.size == before:
            return colouring, maps


def members_of(colouring: Colouring) -> dict[int, IntArray]:
    """Classes of every cell with more than one, ordered by their first element."""
    elements = np.arange(len(colouring.classes))
    first = np.full(colouring.count, len(elements))
    np.minimum.at(first, colouring.classes, elements)
    # One class alone cannot change places.  A vocabulary has many of these, too many to look at one by one.
    cells = colouring.cells
    several = np.flatnonzero(np.bincount(cells)[cells] > 1)
    order = several[np.argsort(cells[several], kind="stable")]
    result = {}
    for run in _runs(cells[order]):
        classes = order[run]
        cell = int(cells[classes[0]])
        by_first = np.argsort(first[classes], kind="stable")
        result[cell] = classes[by_first]
    return result


def _runs(*columns: IntArray | Hash) -> list[slice]:
    """Where sorted columns hold the same values: ``[3, 3, 5]`` gives the slices 0:2 and 2:3."""
    starts = np.flatnonzero(_new_values(*columns))
    bounds = [*starts.tolist(), len(columns[0])]
    return [slice(start, stop) for start, stop in pairwise(bounds)]


def _new_values(*columns: IntArray | Hash) -> BoolArray:
    """Which rows of sorted columns differ from the row before."""
    new = np.zeros(len(columns[0]), dtype=bool)
    new[:1] = True
    for column in columns:
        before = column[:-1]
        new[1:] |= column[1:] != before
    return new


@dataclass(frozen=True, eq=False)
class _Links:
    """Aligned columns: ``child`` lies below ``parent`` (both are classes) in the function ``key``."""

    key: Hash
    child: IntArray
    parent: IntArray

    def rows(self, chosen: IntArray | BoolArray) -> _Links:
        """Some of the rows, or all in another order."""
        key = self.key[chosen]
        child = self.child[chosen]
        parent = self.parent[chosen]
        return _Links(key, child, parent)


def _parent_maps(
    refiner: Refiner,
    implied: Pairs,
    colouring: Colouring,
    members: dict[int, IntArray],
) -> Maps:
    """For every cell the functions member → parent class that the relations define."""
    links = _links(refiner.relation, implied, colouring)
    # Cells of one class have nothing to move, and a class is not its own parent.
    movable = np.isin(colouring.cells[links.child], list(members))
    movable &= links.child != links.parent
    links = _in_order(links.rows(movable), colouring.cells)
    cell = colouring.cells[links.child]
    place = colouring.places(members.values())
    result: Maps = {}
    for run in _runs(cell, links.key):
        number = int(cell[run.start])
        own = links.child[run]
        # Not a function of the whole cell: whether that matters, the check will tell.
        if not _each_once(own, members[number]):
            continue
        image = np.empty_like(own)
        image[place[own]] = links.parent[run]
        result.setdefault(number, []).append(image)
    return result


def _links(rows: Rows, implied: Pairs, colouring: Colouring) -> _Links:
    """All relations between classes, those of the tables before the implied ones.

    Rows of one table whose elements have the same colours describe one function, so they have one key.
    """
    colours = colouring.colours
    of_left = colours[rows.left]
    of_right = colours[rows.right]
    own_key = mix(rows.table, of_left, of_right)
    extra_child, extra_parent = implied
    # Implied relations have one key: the cells of the parents tell them apart.
    extra_key = np.repeat(mix(5, 0), len(extra_child))
    key = np.concatenate([own_key, extra_key])
    child = np.concatenate([rows.left, extra_child])
    parent = np.concatenate([rows.right, extra_parent])
    classes = colouring.classes
    return _Links(key, classes[child], classes[parent])


def _in_order(links: _Links, cells: IntArray) -> _Links:
    """The links without repetitions, sorted by the cell of the child, key, child and parent."""
    # One table may lead into several cells: into each a function of its own.
    key = mix(links.key, cells[links.parent])
    links = _Links(key, links.child, links.parent)
    cell = cells[links.child]
    # The last column of ``lexsort`` counts first.
    order = np.lexsort((links.parent, links.child, key, cell))
    links = links.rows(order)
    cell = cell[order]
    new = _new_values(cell, links.key, links.child, links.parent)
    return links.rows(new)


def _each_once(own: IntArray, members: IntArray) -> bool:
    """Whether some members of a cell are all of them, none twice."""
    if len(own) != len(members):
        return False
    return len(np.unique(own)) == len(own)


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
        # Numbered by the first member, not by the parent, so that equal cuts have equal partitions.
        number = np.argsort(np.argsort(first))
        return cls(image, first, number[inverse])

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return len(self.first)


def _cuts(
    closure: Closure,
    colouring: Colouring,
    members: IntArray,
    images: list[IntArray],
) -> list[_Cut]:
    """One cut for each way in which parents cut a cell into blocks; parents that cut it alike become equal."""
    equal = closure.equal
    # Implied constraints are said of classes, through one element of each.
    element = colouring.representatives
    by_partition: dict[bytes, _Cut] = {}
    distinct = {image.tobytes(): image for image in images}
    for image in distinct.values():
        cut = _Cut.of(image)
        # One parent above all of them says nothing about their order.
        if cut.blocks == 1:
            continue
        if cut.blocks == len(members):
            # Every member has a parent of its own: member and parent are one unit.
            equal.add(element[members], element[image])
            continue
        key = cut.partition.tobytes()
        known = by_partition.setdefault(key, cut)
        if known is not cut:
            theirs = known.image[cut.first]
            mine = image[cut.first]
            equal.add(element[theirs], element[mine])
    return list(by_partition.values())


def _relate(closure: Closure, colouring: Colouring, cuts: list[_Cut]) -> None:
    """If every block of one cut lies in one block of another, so do their parents."""
    for fine, coarse in permutations(cuts, 2):
        if fine.blocks <= coarse.blocks:
            continue
        both = np.stack([fine.image, coarse.image])
        pairs = np.unique(both, axis=1)
        # More pairs than fine blocks: a fine parent stands beside several coarse ones.
        if pairs.shape[1] != fine.blocks:
            continue
        child, parent = colouring.representatives[pairs]
        key = child.tobytes() + parent.tobytes()
        if key not in closure.seen:
            closure.seen.add(key)
            closure.relation.add(child, parent)
