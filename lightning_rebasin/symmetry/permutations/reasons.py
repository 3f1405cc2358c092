"""Why something is pinned: the constraint that fixed it, in words."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lightning_rebasin.symmetry.permutations.cells import Cells
from lightning_rebasin.symmetry.permutations.elements import IntArray, Table
from lightning_rebasin.symmetry.permutations.labels import Label, Part
from lightning_rebasin.symmetry.spec.values import Pin

BoolArray = NDArray[np.bool_]


class Reasons:
    """Why the elements of a class are pinned: the first table that fixes the position of one of them."""

    def __init__(self, found: Cells, tables: list[Table]) -> None:
        self.of_class: dict[int, Table] = {}
        classes = found.colouring.classes
        for table in tables:
            # A column of one value fixes nothing: everything may go everywhere.
            if table.kind != "position" or len(np.unique(table.right)) < 2:
                continue
            for number in np.unique(classes[table.left]).tolist():
                self.of_class.setdefault(number, table)
        self.used = np.zeros(len(classes), dtype=bool)
        for table in tables:
            self.used[table.left] = True
            if table.kind in ("equal", "relation"):
                self.used[table.right] = True
        self.forced = np.zeros(len(classes), dtype=bool)
        self.forced[found.forced] = True
        self.classes = classes

    def explain(self, elements: IntArray) -> tuple[str, str]:
        """The commonest reason for some elements, and where it arose."""
        if not self.used[elements].any():
            return "not used in the forward pass", ""
        # A sample is enough to find the commonest reason.
        sample = elements[:: max(1, len(elements) // 16)]
        for number in self.classes[sample].tolist():
            table = self.of_class.get(number)
            if table is not None:
                return table.reason, table.where
        if self.forced[elements].any():
            return (
                "its symmetry is no product of nested permutation groups",
                "",
            )
        return "no other unit is used in the same way", ""


def pins_of(
    moves: BoolArray, tensor: str, label: Label, why: Reasons
) -> list[Pin]:
    """Pins of one tensor, dimension by dimension; ``moves`` tells which elements move."""
    pins = []
    for dim, sites in enumerate(label.dims):
        if not sites:
            continue
        size = label.shape[dim]
        part = _part_along(label, sites)
        if part is None:
            pins.append(
                Pin(tensor, dim, size, size, "not used in the forward pass")
            )
            continue
        ids = part.elements.ids
        fixed = ~moves[ids]
        share = round(float(fixed.mean()) * size)
        if share:
            reason, where = why.explain(ids[fixed])
            pins.append(Pin(tensor, dim, share, size, reason, where))
    return pins


def _part_along(label: Label, sites: tuple[int, ...]) -> Part | None:
    """The part that says most about a dimension: one that ends there, else any that lies there."""
    touching = [
        part for part in label.parts if set(sites).intersection(part.sites)
    ]
    ending = [part for part in touching if part.sites[-1] == sites[-1]]
    return next(iter(ending or touching), None)
