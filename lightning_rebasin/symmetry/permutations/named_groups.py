"""Names for the cells that are groups, and where each element belongs.

A group is named after the module of the first tensor on which it acts, with a number behind it if another group has the
name already; an outer group is named before the groups inside it.

In ``Linear(3, 2) → ReLU → Linear(2, 2)`` the cell of the two hidden units acts first on ``0.weight``, so the group is
called ``"0"``.  Of its elements 0, 5 and 9 belong to member 0 (they are one class), 1, 6 and 10 to member 1.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from lightning_rebasin.symmetry.permutations.cells import Cells
from lightning_rebasin.symmetry.permutations.elements import IntArray
from lightning_rebasin.symmetry.permutations.labels import Label, Part
from lightning_rebasin.symmetry.permutations.shared_axes import SharedAxes
from lightning_rebasin.symmetry.spec.values import Group

BoolArray = NDArray[np.bool_]


class NamedGroups:
    """The groups that were found, by cell, and the cell and member of each element.

    Args:
        found: The cells.
        states: Labels of the state; groups are named after the first tensor on which they act.
    """

    def __init__(self, found: Cells, states: Mapping[str, Label]) -> None:
        self.found = found
        self.shared = SharedAxes(found)
        self.cell_of = found.colouring.cell_of
        #: Which cells are groups, and which consist of units that follow several groups.
        self._is_group = self._which("group")
        self._follows = self._which("follow")
        members = [cell.members for cell in found.cells.values()]
        self._member_of = found.colouring.places(members)
        #: Groups by cell, in the order of the first tensor dimension on which they act, parents first.
        self.groups: dict[int, Group] = {}
        self._taken: set[str] = set()
        for tensor, label in states.items():
            for part in label.parts:
                for number in self._acting_on(part):
                    self._name(number, tensor)

    def _which(self, kind: str) -> BoolArray:
        """For every number of a cell, whether it is of a kind."""
        count = self.cell_of.max(initial=0) + 1
        flags = np.zeros(count, dtype=bool)
        for cell in self.found.cells.values():
            if cell.kind == kind:
                flags[cell.number] = True
        return flags

    def cells_on(self, part: Part) -> IntArray:
        """Cells of the positions of a part, row-major."""
        flat = part.elements.ids.reshape(-1)
        return self.cell_of[flat]

    def groups_on(self, part: Part) -> list[int]:
        """Cells of the groups of which units stand on a part, ascending."""
        return self._cells_where(self._is_group, part)

    def following_on(self, part: Part) -> list[int]:
        """Cells on a part whose units follow several groups, ascending."""
        return self._cells_where(self._follows, part)

    def _cells_where(self, flags: BoolArray, part: Part) -> list[int]:
        cells = self.cells_on(part)
        own = np.unique(cells[flags[cells]])
        found: list[int] = own.tolist()
        return found

    def members(self, elements: IntArray) -> IntArray:
        """The member of its group to which each element belongs."""
        classes = self.found.colouring.classes[elements]
        return self._member_of[classes]

    def _acting_on(self, part: Part) -> list[int]:
        """Cells of the groups that move some positions, in the order in which they appear."""
        cells = self.cells_on(part)
        cells = cells[self._is_group[cells]]
        own, first = np.unique(cells, return_index=True)
        by_first = np.argsort(first)
        acting: list[int] = own[by_first].tolist()
        # A group may act only through units that follow it (the heads of a fused projection).
        for cell in self.following_on(part):
            acting += self.shared.groups_of(cell)
        return acting

    def _name(self, number: int, tensor: str) -> Group:
        """Name a group after the module of a tensor, its parents before it."""
        if number in self.groups:
            return self.groups[number]
        cell = self.found.cells[number]
        parent = None
        if cell.parents:
            parent = self._name(cell.parents[0], tensor)
        # A tensor of the model itself has no module, and gives its own name.
        base = tensor.rpartition(".")[0] or tensor
        name = base
        count = 1
        while name in self._taken:
            count += 1
            name = f"{base}#{count}"
        self._taken.add(name)
        group = Group(name, cell.size, parent)
        self.groups[number] = group
        return group
