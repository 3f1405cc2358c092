"""Elements and constraints: the raw material of the inference.

Every index of every axis of a parameter gets an integer, an *element*.  Running the model emits constraints between
elements, kept as *tables* whose rows a symmetry must map onto rows of the same table:

    equal      ``(a, b)``           the two elements are one unit
    relation   ``(child, parent)``  the child lies in the block of the parent, or is a copy of it
    position   ``(a, value)``       the element may only move to one with the same value
    mark       ``(a)``              the set is used as a set

The example that all files of this folder carry on is ``Linear(3, 2) → ReLU → Linear(2, 2)`` with the tensors
``0.weight`` (2×3), ``0.bias``, ``2.weight`` (2×2) and ``2.bias``.  Their axes are six runs of elements:

    0.weight   rows [0, 1]   columns [2, 3, 4]
    0.bias     [5, 6]
    2.weight   rows [7, 8]   columns [9, 10]
    2.bias     [11, 12]

and one forward pass leaves these tables:

    equal      0 ≡ 5, 1 ≡ 6             the first bias is added to the rows of the first weight
    position   2 at 0, 3 at 1, 4 at 2   the columns of the first weight meet the input, whose order is fixed
    equal      0 ≡ 9, 1 ≡ 10            the columns of the second weight meet the hidden units
    equal      7 ≡ 11, 8 ≡ 12           the second bias
    mark       0, 1                     the hidden units are summed over
    position   7 at 0, 8 at 1           the rows of the second weight are the output

A *defining* table describes elements invented for an intermediate tensor (a concatenation, a block).  It counts only if
those elements are used later, so that a dead slice constrains nothing.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

IntArray = NDArray[np.int64]
Shape = tuple[int, ...]
TableKind = Literal["equal", "relation", "position", "mark"]


class Elements:
    """An immutable array of element ids with a content key (two equal arrays have equal keys)."""

    __slots__ = ("ids", "key")

    def __init__(self, ids: IntArray) -> None:
        self.ids = np.ascontiguousarray(ids, dtype=np.int64)
        # Arrays are compared far more often than made, so their content is hashed once.
        digest = hashlib.blake2b(self.ids.tobytes(), digest_size=16)
        digest.update(repr(self.ids.shape).encode())
        self.key = digest.digest()

    @property
    def shape(self) -> Shape:
        """Shape of the array: one axis per site."""
        return self.ids.shape


@dataclass(frozen=True, eq=False)
class Table:
    """One constraint; ``left`` and ``right`` are aligned flat arrays (``right`` is a value column for positions)."""

    kind: TableKind
    left: IntArray
    right: IntArray
    where: str
    reason: str
    defines: bool = False


@dataclass(frozen=True)
class ElementRun:
    """Consecutive elements: one axis of a tensor, or invented for an operation (``tensor`` empty)."""

    start: int
    stop: int
    tensor: str
    axis: int


class Constraints:
    """Allocates elements and collects tables, without duplicates."""

    def __init__(self) -> None:
        self.size = 0
        self.runs: list[ElementRun] = []
        self.tables: list[Table] = []
        #: The operation whose rule runs now; it is the origin of the tables that are added.
        self.where = ""
        self._representative: dict[bytes, Elements] = {}
        # What was said already: a loop over time steps says the same at every step.
        self._seen: set[tuple[object, ...]] = set()
        self._projection: dict[tuple[bytes, Shape], Elements] = {}

    def fresh(
        self, shape: Shape, tensor: str = "", axis: int = -1
    ) -> Elements:
        """New elements, for an axis of ``tensor`` or for an intermediate result."""
        start, stop = self.size, self.size + math.prod(shape)
        self.runs.append(ElementRun(start, stop, tensor, axis))
        self.size = stop
        ids = np.arange(start, stop, dtype=np.int64)
        return Elements(ids.reshape(shape))

    def canonical(self, e: Elements) -> Elements:
        """The representative of all arrays that were equated as a whole with ``e``."""
        found = e
        while (up := self._representative.get(found.key)) is not None:
            found = up
        if found is not e:
            # Shorten the way for the next time.
            self._representative[e.key] = found
        return found

    def equal(self, a: Elements, b: Elements) -> Elements:
        """``a ≡ b``, elementwise; returns the representative of both."""
        a, b = self.canonical(a), self.canonical(b)
        if a.key == b.key:
            return a
        # The older array represents both, so that units are named after the first tensor that holds them.
        if b.ids.flat[0] < a.ids.flat[0]:
            a, b = b, a
        self._add("equal", a.ids, b.ids)
        self._representative[b.key] = a
        return a

    def relation(
        self,
        child: Elements,
        parent: Elements,
        axes: tuple[int, ...],
        *,
        defines: bool = False,
    ) -> None:
        """Every element of ``child`` lies under that of ``parent`` at the same place; ``axes`` are the parent's."""
        key = ("relation", child.key, parent.key, axes)
        # A definition is never left out: whether it counts depends on what comes after it.
        if not defines:
            # These parents are the blocks of the child, so that nobody invents others.
            self._projection.setdefault((child.key, axes), parent)
            if key in self._seen:
                return
            self._seen.add(key)
        parents = along(parent.ids, axes, child.shape)
        self._add("relation", child.ids, parents, defines=defines)

    def position(
        self, e: Elements, axis: int, reason: str, *, defines: bool = False
    ) -> None:
        """Elements keep their coordinate along ``axis``."""
        key = ("position", e.key, axis)
        if key in self._seen and not defines:
            return
        if not defines:
            self._seen.add(key)
        coordinate = np.arange(e.shape[axis], dtype=np.int64)
        values = along(coordinate, (axis,), e.shape)
        self._add("position", e.ids, values, reason, defines=defines)

    def pin(self, e: Elements, reason: str) -> None:
        """Elements stay where they are."""
        key = ("pin", e.key)
        if key in self._seen:
            return
        self._seen.add(key)
        # A value of its own for each: none may take the place of another.
        values = np.arange(e.ids.size, dtype=np.int64)
        self._add("position", e.ids, values, reason)

    def mark(self, e: Elements, *, defines: bool = False) -> None:
        """Elements are used together, as a set."""
        key = ("mark", e.key)
        if key in self._seen and not defines:
            return
        if not defines:
            self._seen.add(key)
        # One value for all: they stand in the table, and nothing else is said of them.
        values = np.zeros(e.ids.size, dtype=np.int64)
        self._add("mark", e.ids, values, defines=defines)

    def project(
        self, e: Elements, axes: tuple[int, ...], *, commit: bool = False
    ) -> Elements:
        """The blocks of ``e`` that remain when only ``axes`` are kept.

        Args:
            e: Elements.
            axes: Axes to keep.
            commit: Whether the blocks count even if nothing uses them later (softmax, normalisation).

        Returns:
            The elements of the blocks: of ``[[0, 1, 2], [3, 4, 5]]`` with axis 0 kept two, above 0–2 and above 3–5.
        """
        e = self.canonical(e)
        cached = self._projection.get((e.key, axes))
        if cached is None:
            # Asked for twice, blocks are the same elements twice: heads of q and of k meet there.
            cached = self.fresh(tuple(e.shape[axis] for axis in axes))
            self._projection[e.key, axes] = cached
            self.relation(e, cached, axes, defines=True)
        if commit:
            self.relation(e, cached, axes)
        return self.canonical(cached)

    def _add(
        self,
        kind: TableKind,
        left: IntArray,
        right: IntArray,
        reason: str = "",
        *,
        defines: bool = False,
    ) -> None:
        rows = left.reshape(-1), right.reshape(-1)
        self.tables.append(Table(kind, *rows, self.where, reason, defines))

    def active_tables(self) -> list[Table]:
        """Tables that count: all but the definitions of elements that nothing uses."""
        used = np.zeros(self.size, dtype=bool)
        active = []
        # Backwards, because what is defined is used later.
        for table in reversed(self.tables):
            if table.defines and not used[_defined(table)].any():
                continue
            active.append(table)
            used[table.left] = True
            # The right column of the other kinds holds values, which are not elements.
            if table.kind in ("equal", "relation"):
                used[table.right] = True
        return active[::-1]


def _defined(table: Table) -> IntArray:
    """The column of a definition that holds the new elements: the left one, except for blocks.

    New elements have the larger numbers: a copy is made after its original, a block after what lies in it.
    """
    is_block = table.kind == "relation" and table.left[0] <= table.right[0]
    return table.right if is_block else table.left


def along(values: IntArray, axes: Iterable[int], shape: Shape) -> IntArray:
    """Broadcast ``values``, whose axes are ``axes`` of ``shape`` (ascending), to ``shape``.

    Example:
        >>> along(np.array([7, 8]), (0,), (2, 3)).tolist()
        [[7, 7, 7], [8, 8, 8]]
    """
    own = set(axes)
    view = [size if axis in own else 1 for axis, size in enumerate(shape)]
    return np.broadcast_to(values.reshape(view), shape)


def connected(
    size: int, left: IntArray, right: IntArray
) -> tuple[IntArray, int]:
    """Classes of elements that pairs connect.

    Args:
        size: Number of elements.
        left: One element of each pair.
        right: The other one.

    Returns:
        The class of each element, and how many classes there are.

    Example:
        >>> classes, count = connected(4, np.array([0, 2]), np.array([2, 3]))
        >>> classes.tolist(), count
        ([0, 1, 0, 0], 2)
    """
    ones = np.ones(len(left), dtype=np.int8)
    # Before 1.13 SciPy's search takes short numbers only, and does not shorten them itself.
    pairs = (left.astype(np.int32), right.astype(np.int32))
    graph = coo_array((ones, pairs), shape=(size, size))
    count, classes = connected_components(graph, directed=False)
    return classes.astype(np.int64), count
