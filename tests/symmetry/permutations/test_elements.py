"""Elements and tables: the worked example, what is said twice, what counts."""

import numpy as np
import pytest
from helpers.stages import worked_example

from lightning_rebasin.symmetry.permutations.elements import (
    Constraints,
    Elements,
    along,
    connected,
)


def test_the_worked_example_has_six_runs_and_six_tables():
    store = worked_example().found.store
    runs = [(r.tensor, r.axis, r.start, r.stop) for r in store.runs]
    assert runs == [
        ("0.weight", 0, 0, 2),
        ("0.weight", 1, 2, 5),
        ("0.bias", 0, 5, 7),
        ("2.weight", 0, 7, 9),
        ("2.weight", 1, 9, 11),
        ("2.bias", 0, 11, 13),
    ]
    tables = [
        (t.kind, t.left.tolist(), t.right.tolist()) for t in store.tables
    ]
    assert tables == [
        ("equal", [0, 1], [5, 6]),
        ("position", [2, 3, 4], [0, 1, 2]),
        ("equal", [0, 1], [9, 10]),
        ("equal", [7, 8], [11, 12]),
        ("mark", [0, 1], [0, 0]),
        ("position", [7, 8], [0, 1]),
    ]
    assert store.tables[1].where == "aten.addmm in 0"
    assert store.tables[-1].reason == "it is an output"


def test_equal_arrays_have_equal_keys_and_other_shapes_have_not():
    flat = np.arange(6)
    assert Elements(flat).key == Elements(flat.copy()).key
    assert Elements(flat).key != Elements(flat.reshape(2, 3)).key


def test_the_oldest_array_represents_all_that_equal_it():
    store = Constraints()
    a, b, c = (store.fresh((3,)) for _ in range(3))
    assert store.equal(c, b) is b
    assert store.equal(a, c) is a
    assert store.canonical(c) is a and store.canonical(a) is a
    assert len(store.tables) == 2
    # They are one already, in whatever way it is said again.
    store.equal(b, a)
    assert len(store.tables) == 2


@pytest.mark.parametrize(
    "say",
    [
        lambda store, e: store.pin(e, "why"),
        lambda store, e: store.mark(e),
        lambda store, e: store.position(e, 0, "why"),
        lambda store, e: store.relation(e, Elements(np.array([7, 8])), (0,)),
    ],
)
def test_what_is_said_twice_is_one_table(say):
    store = Constraints()
    e = store.fresh((2, 3))
    say(store, e)
    say(store, Elements(e.ids.copy()))
    assert len(store.tables) == 1


def test_a_pin_tells_all_apart_and_a_position_only_one_axis():
    store = Constraints()
    e = store.fresh((2, 3))
    store.pin(e, "why")
    store.position(e, 1, "why")
    pin, position = store.tables
    assert pin.right.tolist() == [0, 1, 2, 3, 4, 5]
    assert position.right.tolist() == [0, 1, 2, 0, 1, 2]


def test_blocks_are_made_once_and_count_only_if_used():
    store = Constraints()
    e = store.fresh((2, 3))
    blocks = store.project(e, (0,))
    assert blocks.ids.tolist() == [6, 7]
    assert store.project(e, (0,)) is blocks
    assert store.active_tables() == []
    store.mark(blocks)
    relation, mark = store.active_tables()
    assert relation.left.tolist() == [0, 1, 2, 3, 4, 5]
    assert relation.right.tolist() == [6, 6, 6, 7, 7, 7]
    assert mark.left.tolist() == [6, 7]


def test_committed_blocks_count_at_once():
    store = Constraints()
    e = store.fresh((2, 3))
    store.project(e, (0,), commit=True)
    kinds = [(t.kind, t.defines) for t in store.active_tables()]
    assert kinds == [("relation", True), ("relation", False)]


def test_parents_that_are_known_are_the_blocks():
    store = Constraints()
    child, parent = store.fresh((2, 3)), store.fresh((2,))
    store.relation(child, parent, (0,))
    assert store.project(child, (0,)) is parent


def test_definitions_behind_definitions_count_together():
    """A copy of a copy: using the last one makes all of them count, using none makes none."""
    store = Constraints()
    first, second, third = (store.fresh((2,)) for _ in range(3))
    store.relation(second, first, (0,), defines=True)
    store.relation(third, second, (0,), defines=True)
    assert store.active_tables() == []
    store.mark(third)
    assert len(store.active_tables()) == 3


def test_values_are_broadcast_along_the_other_axes():
    values = np.arange(6).reshape(2, 3)
    found = along(values, (0, 2), (2, 4, 3))
    assert found.shape == (2, 4, 3)
    assert all(np.array_equal(found[:, k], values) for k in range(4))


def test_connected_elements_are_one_class():
    classes, count = connected(5, np.array([0, 3]), np.array([4, 4]))
    assert count == 3
    assert classes[0] == classes[3] == classes[4]
    assert len({classes[0], classes[1], classes[2]}) == 3
