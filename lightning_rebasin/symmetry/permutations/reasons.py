"""Why something is pinned: the constraint that fixed it, in words."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lightning_rebasin.symmetry.permutations.cells import Solution
from lightning_rebasin.symmetry.permutations.elements import IntArray, Table
from lightning_rebasin.symmetry.permutations.labels import Label
from lightning_rebasin.symmetry.spec.values import Pin

BoolArray = NDArray[np.bool_]


class Reasons:
    """Why the elements of a class are pinned: the first table that fixes the position of one of them."""

    def __init__(self, solution: Solution, tables: list[Table]) -> None:
        self.of_class: dict[int, Table] = {}
        classes = solution.colouring.classes
        for table in tables:
            if table.kind == "position" and len(np.unique(table.right)) > 1:
                for c in np.unique(classes[table.left]).tolist():
                    self.of_class.setdefault(c, table)
        self.used = np.zeros(len(classes), dtype=bool)
        for table in tables:
            self.used[table.left] = True
            if table.kind in ("equal", "relation"):
                self.used[table.right] = True
        self.forced = np.zeros(len(classes), dtype=bool)
        self.forced[solution.forced] = True
        self.classes = classes

    def explain(self, elements: IntArray) -> tuple[str, str]:
        """The commonest reason for some elements, and where it arose."""
        if not self.used[elements].any():
            return "not used in the forward pass", ""
        for c in self.classes[elements[:: max(1, len(elements) // 16)]].tolist():
            if c in self.of_class:
                return self.of_class[c].reason, self.of_class[c].where
        if self.forced[elements].any():
            return "its symmetry is no product of nested permutation groups", ""
        return "no other unit is used in the same way", ""


def pins_of(moves: BoolArray, tensor: str, label: Label, why: Reasons) -> list[Pin]:
    """Pins of one tensor, dimension by dimension; ``moves`` tells which elements move."""
    pins = []
    for dim, sites in enumerate(label.dims):
        size = label.shape[dim]
        own = [p for p in label.parts if set(sites) & set(p.sites)]
        own = [p for p in own if p.sites[-1] == sites[-1]] or own
        if not sites:
            continue
        if not own:
            pins.append(Pin(tensor, dim, size, size, "not used in the forward pass"))
            continue
        ids = own[0].elements.ids
        fixed = ~moves[ids]
        share = round(float(fixed.mean()) * size)
        if share:
            reason, where = why.explain(ids[fixed])
            pins.append(Pin(tensor, dim, share, size, reason, where))
    return pins
