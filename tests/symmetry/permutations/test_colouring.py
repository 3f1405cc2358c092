"""Colour refinement on the worked example and on tiny sets of tables."""

import numpy as np
from helpers.stages import worked_example

from lightning_rebasin.symmetry.permutations.colouring import (
    Refiner,
    Rows,
    mix,
)
from lightning_rebasin.symmetry.permutations.elements import (
    Constraints,
    Elements,
)

NONE = np.zeros(0, dtype=np.int64)
NOTHING = (NONE, NONE)


def colour(store, forced=NONE, equal=NOTHING, relation=NOTHING):
    refiner = Refiner(store.size, store.runs, store.active_tables())
    return refiner.colour(equal, relation, forced)


def groups_by(values):
    """The sets of positions that hold one value."""
    found = {}
    for position, value in enumerate(values.tolist()):
        found.setdefault(value, set()).add(position)
    return sorted(map(sorted, found.values()))


def test_the_classes_and_cells_of_the_worked_example():
    colouring = worked_example().cells.colouring
    assert groups_by(colouring.classes) == [
        [0, 5, 9],
        [1, 6, 10],
        [2],
        [3],
        [4],
        [7, 11],
        [8, 12],
    ]
    assert colouring.count == 7
    # Only the two hidden units look alike.
    assert groups_by(colouring.cell_of)[0] == [0, 1, 5, 6, 9, 10]
    assert len(set(colouring.cells.tolist())) == 6


def test_the_elements_of_the_classes_of_a_cell_stand_in_corresponding_roles():
    colouring = worked_example().cells.colouring
    starts = colouring.starts
    first, second = (
        colouring.order[starts[k] : starts[k + 1]] for k in (0, 1)
    )
    assert (second - first).tolist() == [1, 1, 1]
    colours = colouring.colours
    assert np.array_equal(colours[first], colours[second])
    assert colouring.representatives[:2].tolist() == [first[0], second[0]]


def test_a_hash_depends_on_the_order_and_on_every_value():
    a, b = np.array([1, 2, 3]), np.array([4, 5, 6])
    assert not np.array_equal(mix(a, b), mix(b, a))
    assert mix(a, 0)[0] != mix(a, 1)[0]
    assert np.array_equal(mix(a, b)[:2], mix(a[:2], b[:2]))


def test_rows_of_a_kind_know_their_table():
    store = Constraints()
    a, b = store.fresh((2,)), store.fresh((2,))
    store.mark(a)
    store.equal(a, b)
    store.pin(b, "why")
    rows = Rows.gather(store.active_tables(), "position", "mark")
    assert rows.table.tolist() == [0, 0, 2, 2]
    assert rows.left.tolist() == [0, 1, 2, 3]
    assert rows.right.tolist() == [0, 0, 0, 1]
    assert not len(Rows.gather(store.tables, "relation").table)


def test_elements_alike_have_one_colour_and_a_mark_splits_them():
    store = Constraints()
    a = store.fresh((4,))
    store.mark(a)
    assert groups_by(colour(store).cells) == [[0, 1, 2, 3]]
    store.mark(Elements(a.ids[1:3]))
    assert groups_by(colour(store).cells) == [[0, 3], [1, 2]]


def test_a_difference_walks_along_equalities_and_relations():
    """The last of a chain of arrays is marked in part: so is every other one."""
    store = Constraints()
    a, b, c = (store.fresh((3,)) for _ in range(3))
    store.relation(a, b, (0,))
    store.relation(b, c, (0,))
    store.mark(Elements(c.ids[:1]))
    cells = colour(store).cell_of.reshape(3, 3)
    for row in cells.tolist():
        assert row[0] != row[1] == row[2]


def test_parents_and_children_are_told_apart():
    """Two runs below each other, 0 → 1: were the sides alike, one could stand for the other."""
    store = Constraints()
    a = store.fresh((4,))
    store.mark(a)
    store.relation(Elements(a.ids[:2]), Elements(a.ids[2:]), (0,))
    assert groups_by(colour(store).cells) == [[0, 1], [2, 3]]


def test_what_nothing_uses_and_what_is_forced_stays():
    store = Constraints()
    a = store.fresh((4,))
    store.mark(Elements(a.ids[:3]))
    assert groups_by(colour(store).cells) == [[0, 1, 2], [3]]
    forced = colour(store, forced=np.array([0]))
    assert groups_by(forced.cells) == [[0], [1, 2], [3]]
    other = store.fresh((2,))
    cells = colour(store).cells
    assert cells[other.ids[0]] != cells[other.ids[1]]


def test_implied_pairs_count_like_those_of_the_tables():
    store = Constraints()
    a = store.fresh((4,))
    store.mark(a)
    equal = (np.array([0, 2]), np.array([1, 3]))
    assert groups_by(colour(store, equal=equal).classes) == [[0, 1], [2, 3]]
    relation = (np.array([0]), np.array([1]))
    cells = colour(store, relation=relation).cells
    assert groups_by(cells) == [[0], [1], [2, 3]]


def test_places_in_lists():
    colouring = worked_example().cells.colouring
    places = colouring.places([np.array([3, 1]), np.array([6])])
    assert places.tolist() == [-1, 1, -1, 0, -1, -1, 0]


def test_elements_at_other_positions_have_other_colours():
    store = Constraints()
    a = store.fresh((2, 3))
    store.position(a, 0, "why")
    assert groups_by(colour(store).cells) == [[0, 1, 2], [3, 4, 5]]


def test_roles_are_aligned_whatever_the_numbers():
    """Classes {0, 1} and {2, 3}, of which 0 and 3 play one role, 1 and 2 the other."""
    store = Constraints()
    a = store.fresh((4,))
    store.mark(Elements(a.ids[[0, 3]]))
    store.equal(Elements(a.ids[[0, 3]]), Elements(a.ids[[1, 2]]))
    colouring = colour(store)
    pairs = colouring.order.reshape(2, 2).tolist()
    assert pairs in ([[0, 1], [3, 2]], [[1, 0], [2, 3]])
