"""Why something is pinned: the constraint that fixed it, in words.

In ``Linear(3, 2) → ReLU → Linear(2, 2)`` the columns of ``0.weight`` are the elements 2, 3, 4, and none of them moves.
The first table that fixes the position of one of them was left by the first ``addmm``: "it meets a dimension of size 3
whose order is fixed".  So the pin says that 3 of 3 indices of dimension 1 stay, with that reason and place.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lightning_rebasin.symmetry.permutations.cells import Cells
from lightning_rebasin.symmetry.permutations.elements import IntArray, Table
from lightning_rebasin.symmetry.permutations.labels import Label, Part
from lightning_rebasin.symmetry.spec.values import Pin

BoolArray = NDArray[np.bool_]
UNUSED = "not used in the forward pass"
NOT_NESTED = "its symmetry is not a product of nested permutation groups"
ALONE = "no other unit is used in the same way"
#: How many elements of an axis are asked for their reason.
_SAMPLE = 16


class Reasons:
    """Why the elements of a class are pinned: the first table that fixes the position of one of them.

    Args:
        found: The cells.
        tables: The constraints, in the order in which they arose.
    """

    def __init__(self, found: Cells, tables: list[Table]) -> None:
        self.classes = found.colouring.classes
        self.of_class: dict[int, Table] = {}
        count = len(self.classes)
        self.used = np.zeros(count, dtype=bool)
        self.forced = np.zeros(count, dtype=bool)
        self.forced[found.forced] = True
        for table in tables:
            self.used[table.left] = True
            if table.kind in ("equal", "relation"):
                self.used[table.right] = True
            if table.kind == "position":
                self._remember(table)

    def _remember(self, table: Table) -> None:
        """Let a table be the reason for all classes that have none yet."""
        # A column of one value fixes nothing: everything may go everywhere.
        if len(np.unique(table.right)) < 2:
            return
        own = np.unique(self.classes[table.left])
        for number in own.tolist():
            self.of_class.setdefault(number, table)

    def explain(self, elements: IntArray) -> tuple[str, str]:
        """A reason for some elements, and where it arose."""
        if not self.used[elements].any():
            return UNUSED, ""
        # The elements of an axis mostly share their reason, so a few of them will find it.
        step = max(1, len(elements) // _SAMPLE)
        sample = self.classes[elements[::step]]
        for number in sample.tolist():
            table = self.of_class.get(number)
            if table is not None:
                return table.reason, table.where
        # No table fixes them; then the search for cells did.
        if self.forced[elements].any():
            return NOT_NESTED, ""
        return ALONE, ""


def pins_of(
    moves: BoolArray, tensor: str, label: Label, why: Reasons
) -> list[Pin]:
    """Pins of one tensor, dimension by dimension.

    Args:
        moves: Which elements move.
        tensor: Its name.
        label: Its label.
        why: The reasons.
    """
    pins = []
    for dim, sites in enumerate(label.dims):
        # Nothing can move along a dimension of size 1, so nothing is pinned there.
        if not sites:
            continue
        size = label.shape[dim]
        part = _part_along(label, sites)
        if part is None:
            pins.append(Pin(tensor, dim, size, size, UNUSED))
            continue
        ids = part.elements.ids
        fixed = ~moves[ids]
        # A part may lie over other dimensions too: then its share counts.
        share = round(float(fixed.mean()) * size)
        if share:
            reason, where = why.explain(ids[fixed])
            pins.append(Pin(tensor, dim, share, size, reason, where))
    return pins


def _part_along(label: Label, sites: tuple[int, ...]) -> Part | None:
    """The part that says most about a dimension: one that ends there, else any that lies there."""
    touching = []
    for part in label.parts:
        if not set(sites).isdisjoint(part.sites):
            touching.append(part)
    for part in touching:
        if part.sites[-1] == sites[-1]:
            return part
    return touching[0] if touching else None
