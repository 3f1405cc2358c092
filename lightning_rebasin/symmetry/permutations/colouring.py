"""Colour refinement: which elements and which classes look alike.

Elements that equalities connect form a *class*, one unit of the network.  An element's colour says on which axis it
lies, in which tables it stands and, from round to round, what it stands beside; a class is coloured by its elements.
Classes of one colour are a *cell*: only they can change places.

In ``Linear(3, 2) → ReLU → Linear(2, 2)`` (elements and tables as in ``elements.py``) the 13 elements are 7 classes:

    {0, 5, 9}  {1, 6, 10}   hidden unit i: row i of ``0.weight``, entry i of ``0.bias``, column i of ``2.weight``
    {2}  {3}  {4}           columns of ``0.weight``
    {7, 11}  {8, 12}        row i of ``2.weight`` and entry i of ``2.bias``

At first every element of an axis has one colour.  Elements 7 and 8 stand at different positions of one table, and so do
2, 3 and 4: their colours differ at once, those of 11 and 12 one round later.  The two hidden classes stand in the
same tables beside elements of the same colours, round after round: they keep one colour and are a cell of two.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from lightning_rebasin.symmetry.permutations.elements import (
    ElementRun,
    IntArray,
    Table,
    connected,
)

Hash = NDArray[np.uint64]
#: Aligned columns: the left and the right side of some pairs of elements.
Pairs = tuple[IntArray, IntArray]
#: A difference walks along one relation a round, so the longest chain of relations counts.
_MOST_ROUNDS = 200
# The constants of splitmix64; the last one makes the hash depend on the order of the values.
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)
_CHAIN = np.uint64(0x2545F4914F6CDD1D)


def mix(*values: Hash | IntArray | int) -> Hash:
    """A hash of aligned values (splitmix64)."""
    result = np.zeros(1, dtype=np.uint64)
    for value in values:
        own = np.asarray(value).astype(np.uint64)
        # Overflow is wanted: arithmetic is modulo 2⁶⁴.
        x = own + _GOLDEN
        x = x + result * _CHAIN
        x ^= x >> 30
        x *= _FIRST
        x ^= x >> 27
        x *= _SECOND
        x ^= x >> 31
        result = x
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
        # An empty column first: there may be no such table.
        nothing = np.zeros(0, dtype=np.int64)
        numbers = [nothing]
        left = [nothing]
        right = [nothing]
        for number, table in enumerate(tables):
            if table.kind not in kinds:
                continue
            own = np.full_like(table.left, number)
            numbers.append(own)
            left.append(table.left)
            right.append(table.right)
        return cls(
            np.concatenate(numbers),
            np.concatenate(left),
            np.concatenate(right),
        )


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

    @property
    def count(self) -> int:
        """Number of classes."""
        return len(self.cells)

    @cached_property
    def cell_of(self) -> IntArray:
        """Cell of each element."""
        return self.cells[self.classes]

    @cached_property
    def representatives(self) -> IntArray:
        """One element of each class, in corresponding roles for the classes of one cell."""
        return self.order[self.starts[:-1]]

    def places(self, lists: Iterable[IntArray]) -> IntArray:
        """For each class its place in the list of classes that holds it; −1 if none does."""
        result = np.full(self.count, -1, dtype=np.int64)
        for classes in lists:
            result[classes] = np.arange(len(classes))
        return result


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
        self._first = self._first_colours(runs)

    def _first_colours(self, runs: Sequence[ElementRun]) -> Hash:
        """Colours before the first round: the axis of an element, and the tables in which it stands."""
        colours = np.zeros(self.size, dtype=np.uint64)
        for number, run in enumerate(runs):
            colours[run.start : run.stop] = number + 1
        colours = mix(colours)
        for rows in (self.equal, self.relation):
            for side, column in enumerate((rows.left, rows.right)):
                seen = mix(rows.table, side)
                # Sums do not depend on the order of the rows: an element may stand in many.
                np.add.at(colours, column, seen)
                self.used[column] = True
        # The value of a position is part of the colour: elements at other positions are others.
        rows = self.position
        seen = mix(rows.table, rows.right, 7)
        np.add.at(colours, rows.left, seen)
        self.used[rows.left] = True
        # What nothing uses must stay where it is: a colour of its own for each.
        idle = np.flatnonzero(~self.used)
        colours[idle] = mix(idle, 99)
        return colours

    def colour(
        self,
        equal: Pairs,
        relation: Pairs,
        forced: IntArray,
    ) -> Colouring:
        """Colours at the fixpoint.

        Args:
            equal: Further equalities (implied ones).
            relation: Further relations (implied ones), as elements of the classes.
            forced: Elements that must stay where they are.
        """
        classes, count = self._classes(equal)
        colours = self._first.copy()
        colours[forced] = mix(forced, 1234567)
        distinct = -1
        for _ in range(_MOST_ROUNDS):
            # A class is coloured by what it consists of.
            of_class = np.zeros(count, dtype=np.uint64)
            np.add.at(of_class, classes, mix(colours))
            now = _distinct(of_class) + _distinct(colours)
            # Colours only ever split, so as many as before means the same as before.
            if now == distinct:
                break
            distinct = now
            around = of_class[classes]
            colours = self._round(colours, around, relation)
        _, cells = np.unique(of_class, return_inverse=True)
        cells = cells.astype(np.int64)
        # The k-th element of a class corresponds to the k-th of every class of its cell: sorted by colour they align.
        number = np.arange(self.size)
        order = np.lexsort((number, colours, classes))
        every = np.arange(count + 1)
        starts = np.searchsorted(classes[order], every)
        return Colouring(classes, colours, cells, order, starts)

    def _classes(self, equal: Pairs) -> tuple[IntArray, int]:
        """The class of each element, and how many classes there are."""
        left = np.concatenate([self.equal.left, equal[0]])
        right = np.concatenate([self.equal.right, equal[1]])
        return connected(self.size, left, right)

    def _round(self, colours: Hash, of_class: Hash, extra: Pairs) -> Hash:
        """One round: every element looks at what stands beside it.

        Args:
            colours: Colour of each element.
            of_class: Colour of the class of each element.
            extra: Implied relations, child and parent.
        """
        both = mix(colours, of_class)
        new = both.copy()
        for rows, salt in ((self.equal, 11), (self.relation, 13)):
            # The salts tell the two sides apart: a child is not a parent.
            to_left = mix(both[rows.right], rows.table, salt)
            to_right = mix(both[rows.left], rows.table, salt + 100)
            np.add.at(new, rows.left, to_left)
            np.add.at(new, rows.right, to_right)
        # Implied relations hold between classes; the element that stands for one has no colour that counts.
        child, parent = extra
        to_child = mix(of_class[parent], 17)
        to_parent = mix(of_class[child], 19)
        np.add.at(new, child, to_child)
        np.add.at(new, parent, to_parent)
        return new


def _distinct(values: Hash) -> int:
    """How many different values there are."""
    return len(np.unique(values))
