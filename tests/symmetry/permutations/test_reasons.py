"""Why something is pinned, in words."""

import numpy as np
import torch
from helpers.stages import stages, worked_example
from torch import nn

from lightning_rebasin.symmetry.permutations.cells import Cells, find_cells
from lightning_rebasin.symmetry.permutations.elements import Constraints
from lightning_rebasin.symmetry.permutations.reasons import (
    ALONE,
    NOT_NESTED,
    UNUSED,
    Reasons,
)


def test_the_pins_of_the_worked_example():
    pins = worked_example().assembly.pins
    assert [(p.tensor, p.dim, p.reason, p.where) for p in pins] == [
        (
            "0.weight",
            1,
            "it meets a dimension of size 3 whose order is fixed",
            "aten.addmm in 0",
        ),
        ("2.weight", 0, "it is an output", "output"),
        ("2.bias", 0, "it is an output", "output"),
    ]


def reasons(store, forced=()):
    tables = store.active_tables()
    found = find_cells(store.size, store.runs, tables)
    pinned = np.array(forced, dtype=np.int64)
    return Reasons(Cells(found.colouring, found.cells, pinned), tables)


def test_the_first_table_that_fixes_a_class_is_its_reason():
    store = Constraints()
    a, b = store.fresh((3,)), store.fresh((3,))
    store.equal(a, b)
    store.where = "aten.here"
    store.pin(b, "first")
    store.where = "aten.there"
    store.pin(a, "second")
    # It was said of b, and holds for a: they are one class.
    assert reasons(store).explain(a.ids) == ("first", "aten.here")


def test_one_position_for_all_fixes_nothing():
    store = Constraints()
    a = store.fresh((1, 3))
    store.position(a, 0, "nothing")
    assert reasons(store).explain(a.ids.reshape(-1)) == (ALONE, "")


def test_what_nothing_uses_is_called_unused():
    store = Constraints()
    a, b = store.fresh((3,)), store.fresh((3,))
    store.mark(a)
    assert reasons(store).explain(b.ids) == (UNUSED, "")
    assert reasons(store).explain(a.ids) == (ALONE, "")


def test_what_the_search_had_to_pin_is_not_nested():
    store = Constraints()
    a = store.fresh((3,))
    store.mark(a)
    assert reasons(store, forced=[1]).explain(a.ids) == (NOT_NESTED, "")
    assert "is not a product" in NOT_NESTED


def test_a_part_of_an_axis_is_counted_in_indices():
    """Of eight hidden units three go to the output: 3 of 8 are pinned."""

    class Partly(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 2)

        def forward(self, x):
            h = self.a(x)
            return self.b(h), h[:, :3]

    found = stages(Partly(), torch.zeros(2, 3)).assembly
    pins = {(p.tensor, p.dim): p for p in found.pins}
    pin = pins["a.bias", 0]
    assert (pin.pinned, pin.size, pin.reason) == (3, 8, "it is an output")


def test_a_parameter_that_is_not_used_says_so():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(3, 2)
            self.idle = nn.Parameter(torch.ones(4, 1))

        def forward(self, x):
            return self.a(x)

    found = stages(Unused(), torch.zeros(2, 3)).assembly
    pins = [
        (p.dim, p.pinned, p.reason) for p in found.pins if p.tensor == "idle"
    ]
    # A dimension of size 1 is not mentioned: nothing could move there.
    assert pins == [(0, 4, UNUSED)]
