"""Colour refinement: which elements and which classes look alike.

Elements that equalities connect form a *class*, one unit of the network.  An element's colour says on which axis it
lies, in which tables it stands and, from round to round, what it stands beside; a class is coloured by its elements.
Classes of one colour are a *cell*: only they can change places.

In ``Linear(3, 4) → relu → Linear(4, 2)`` row i of the first weight, entry i of its bias and column i of the second
weight are one class.  At first every element of an axis has one colour.  The rows of the second weight are pinned one
by one (they are outputs), so their colours differ at once; the four hidden classes stand in the same tables beside
elements of the same colours, round after round, and keep one colour: they are a cell of four.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from lightning_rebasin.symmetry.permutations.elements import (
    ElementRun,
    IntArray,
    Table,
)

Hash = NDArray[np.uint64]
_MOST_ROUNDS = 200


def mix(*values: Hash | IntArray | int) -> Hash:
    """A hash of aligned values (splitmix64)."""
    result = np.zeros(1, dtype=np.uint64)
    for value in values:
        x = (
            np.asarray(value).astype(np.uint64)
            + np.uint64(0x9E3779B97F4A7C15)
            + result * np.uint64(0x2545F4914F6CDD1D)
        )
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        result = x ^ (x >> np.uint64(31))
    return result


@dataclass(frozen=True, eq=False)
class Rows:
    """All rows of one kind of table, with the number of their table."""

    table: IntArray
    left: IntArray
    right: IntArray

    @classmethod
    def gather(cls, tables: Sequence[Table], *kinds: str) -> Rows:
        """Concatenate the rows of the tables of some kinds."""
        nothing = np.zeros(0, dtype=np.int64)
        number, left, right = [nothing], [nothing], [nothing]
        for i, table in enumerate(tables):
            if table.kind in kinds:
                number.append(np.full(len(table.left), i, dtype=np.int64))
                left.append(table.left)
                right.append(table.right)
        columns = (np.concatenate(column) for column in (number, left, right))
        return cls(*columns)


@dataclass(frozen=True, eq=False)
class Colouring:
    """Classes and colours at a fixpoint.

    Args:
        classes: Class of each element.
        colours: Colour of each element.
        cells: Cell of each class.
        order: Elements sorted by class, then colour, then number.
        starts: Where each class starts in ``order`` (one more entry than classes).
    """

    classes: IntArray
    colours: Hash
    cells: IntArray
    order: IntArray
    starts: IntArray


class Refiner:
    """Refines the colours of a fixed set of tables under growing equalities.

    Args:
        size: Number of elements.
        runs: Runs of elements that belong to one axis.
        tables: The constraints.
    """

    def __init__(
        self, size: int, runs: Sequence[ElementRun], tables: Sequence[Table]
    ) -> None:
        self.size = size
        self.equal = Rows.gather(tables, "equal")
        self.relation = Rows.gather(tables, "relation")
        self.position = Rows.gather(tables, "position", "mark")
        #: Which elements stand in any table.
        self.used = np.zeros(size, dtype=bool)
        colours = np.zeros(size, dtype=np.uint64)
        for number, run in enumerate(runs):
            colours[run.start : run.stop] = number + 1
        colours = mix(colours)
        for rows in (self.equal, self.relation):
            for side, column in enumerate((rows.left, rows.right)):
                # Sums do not depend on the order of the rows: an element may stand in many.
                np.add.at(colours, column, mix(rows.table, side))
                self.used[column] = True
        rows = self.position
        np.add.at(colours, rows.left, mix(rows.table, rows.right, 7))
        self.used[rows.left] = True
        # What nothing uses must stay where it is: a colour of its own for each.
        idle = np.flatnonzero(~self.used)
        colours[idle] = mix(idle, 99)
        self._first = colours

    def colour(
        self,
        equal: tuple[IntArray, IntArray],
        relation: tuple[IntArray, IntArray],
        forced: IntArray,
    ) -> Colouring:
        """Colours at the fixpoint.

        Args:
            equal: Further equalities (implied ones).
            relation: Further relations (implied ones), as elements of the classes.
            forced: Elements that must stay where they are.
        """
        left = np.concatenate([self.equal.left, equal[0]])
        right = np.concatenate([self.equal.right, equal[1]])
        ones = np.ones(len(left), dtype=np.int8)
        graph = coo_array((ones, (left, right)), shape=(self.size, self.size))
        count, classes = connected_components(graph, directed=False)
        classes = classes.astype(np.int64)
        colours = self._first.copy()
        colours[forced] = mix(forced, 1234567)
        distinct = -1
        for _ in range(_MOST_ROUNDS):
            of_class = _sum_by(classes, mix(colours), count)
            now = len(np.unique(of_class)) + len(np.unique(colours))
            # Colours only ever split, so as many as before means the same as before.
            if now == distinct:
                break
            distinct = now
            colours = self._round(colours, of_class, classes, relation)
        cells = np.unique(of_class, return_inverse=True)[1].astype(np.int64)
        order = np.lexsort((np.arange(self.size), colours, classes))
        starts = np.searchsorted(classes[order], np.arange(count + 1))
        return Colouring(classes, colours, cells, order, starts)

    def _round(
        self,
        colours: Hash,
        of_class: Hash,
        classes: IntArray,
        extra: tuple[IntArray, IntArray],
    ) -> Hash:
        both = mix(colours, of_class[classes])
        new = both.copy()
        for rows, salt in ((self.equal, 11), (self.relation, 13)):
            np.add.at(new, rows.left, mix(both[rows.right], rows.table, salt))
            np.add.at(
                new, rows.right, mix(both[rows.left], rows.table, salt + 100)
            )
        child, parent = extra
        np.add.at(new, child, mix(of_class[classes[parent]], 17))
        np.add.at(new, parent, mix(of_class[classes[child]], 19))
        return new


def _sum_by(index: IntArray, values: Hash, count: int) -> Hash:
    result = np.zeros(count, dtype=np.uint64)
    np.add.at(result, index, values)
    return result
