"""Elements and constraints: the raw material of the inference.

Every index of every axis of a parameter gets an integer, an *element*.  Running the model emits constraints between
elements, kept as *tables* whose rows a symmetry must map onto rows of the same table:

    equal      ``(a, b)``         the two elements are one unit
    relation   ``(child, parent)``  the child lies in the block of the parent, or is a copy of it
    position   ``(a, value)``     the element may only move to one with the same value
    mark       ``(a)``            the set is used as a set

The 2×3 weight of ``Linear(3, 2)`` has the elements 0, 1 (rows) and 2, 3, 4 (columns), its bias 5, 6.  Running it on an
input gives ``equal [(0, 5), (1, 6)]`` (the bias is added to the rows), ``position [(2, 0), (3, 1), (4, 2)]`` (the
columns meet an input, whose order is fixed) and, if the result is summed, ``mark [0, 1]``.

A *defining* table describes elements invented for an intermediate tensor (a concatenation, a block).  It counts only if
those elements are used later, so that a dead slice constrains nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
TableKind = Literal["equal", "relation", "position", "mark"]


class Elements:
    """An immutable array of element ids with a content key (two equal arrays have equal keys)."""

    __slots__ = ("ids", "key")

    def __init__(self, ids: IntArray) -> None:
        self.ids = np.ascontiguousarray(ids, dtype=np.int64)
        digest = hashlib.blake2b(self.ids.tobytes(), digest_size=16)
        digest.update(repr(self.ids.shape).encode())
        self.key = digest.digest()

    @property
    def shape(self) -> tuple[int, ...]:
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
        self.where = ""
        self._representative: dict[bytes, Elements] = {}
        self._seen: set[tuple[object, ...]] = set()
        self._projection: dict[tuple[bytes, tuple[int, ...]], Elements] = {}

    def fresh(
        self, shape: tuple[int, ...], tensor: str = "", axis: int = -1
    ) -> Elements:
        """New elements, for an axis of ``tensor`` or for an intermediate result."""
        count = int(np.prod(shape, dtype=np.int64))
        self.runs.append(
            ElementRun(self.size, self.size + count, tensor, axis)
        )
        ids = np.arange(self.size, self.size + count, dtype=np.int64).reshape(
            shape
        )
        self.size += count
        return Elements(ids)

    def canonical(self, e: Elements) -> Elements:
        """The representative of all arrays that were equated as a whole with ``e``."""
        found = e
        while (up := self._representative.get(found.key)) is not None:
            found = up
        if found is not e:
            self._representative[e.key] = found
        return found

    def equal(self, a: Elements, b: Elements) -> Elements:
        """``a ≡ b``, elementwise; returns the representative of both."""
        a, b = self.canonical(a), self.canonical(b)
        if a.key == b.key:
            return a
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
        if not defines:
            self._projection.setdefault((child.key, axes), parent)
            if key in self._seen:
                return
            self._seen.add(key)
        self._add(
            "relation",
            child.ids,
            along(parent.ids, axes, child.shape),
            defines=defines,
        )

    def position(
        self, e: Elements, axis: int, reason: str, *, defines: bool = False
    ) -> None:
        """Elements keep their coordinate along ``axis``."""
        key = ("position", e.key, axis)
        if key in self._seen and not defines:
            return
        if not defines:
            self._seen.add(key)
        values = along(
            np.arange(e.shape[axis], dtype=np.int64), (axis,), e.shape
        )
        self._add("position", e.ids, values, reason, defines=defines)

    def pin(self, e: Elements, reason: str) -> None:
        """Elements stay where they are."""
        key = ("pin", e.key)
        if key not in self._seen:
            self._seen.add(key)
            self._add(
                "position",
                e.ids,
                np.arange(e.ids.size, dtype=np.int64),
                reason,
            )

    def mark(self, e: Elements, *, defines: bool = False) -> None:
        """Elements are used together, as a set."""
        key = ("mark", e.key)
        if key not in self._seen or defines:
            if not defines:
                self._seen.add(key)
            self._add(
                "mark",
                e.ids,
                np.zeros(e.ids.size, dtype=np.int64),
                defines=defines,
            )

    def project(
        self, e: Elements, axes: tuple[int, ...], *, commit: bool = False
    ) -> Elements:
        """The blocks of ``e`` that remain when only ``axes`` are kept.

        Args:
            e: Elements.
            axes: Axes to keep.
            commit: Whether the blocks count even if nothing uses them later (softmax, normalisation).
        """
        e = self.canonical(e)
        cached = self._projection.get((e.key, axes))
        if cached is None:
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
        self.tables.append(
            Table(
                kind,
                left.reshape(-1),
                right.reshape(-1),
                self.where,
                reason,
                defines,
            )
        )

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
            if table.kind in ("equal", "relation"):
                used[table.right] = True
        return active[::-1]


def _defined(table: Table) -> IntArray:
    """The column of a definition that holds the new elements: the left one, except for blocks.

    New elements have the larger numbers: a copy is made after its original, a block after what lies in it.
    """
    is_block = table.kind == "relation" and table.left[0] <= table.right[0]
    return table.right if is_block else table.left


def along(
    values: IntArray, axes: Iterable[int], shape: tuple[int, ...]
) -> IntArray:
    """Broadcast ``values``, whose axes are ``axes`` of ``shape`` (ascending), to ``shape``."""
    axes = tuple(axes)
    view = [shape[i] if i in axes else 1 for i in range(len(shape))]
    return np.broadcast_to(values.reshape(view), shape)
