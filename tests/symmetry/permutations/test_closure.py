"""What relations imply: equal parents, and parents below parents."""

import numpy as np

from lightning_rebasin.symmetry.permutations.closure import (
    Closure,
    ImpliedPairs,
    close,
    members_of,
)
from lightning_rebasin.symmetry.permutations.colouring import Refiner
from lightning_rebasin.symmetry.permutations.elements import (
    Constraints,
    Elements,
)

NONE = np.zeros(0, dtype=np.int64)


def closed(store):
    refiner = Refiner(store.size, store.runs, store.active_tables())
    closure = Closure()
    colouring, maps = close(refiner, closure, NONE)
    return colouring, maps, closure


def same_class(colouring, a, b):
    classes = colouring.classes
    return np.array_equal(classes[a.ids], classes[b.ids])


def test_parents_that_cut_a_cell_alike_are_one_unit():
    """The heads before and behind six value units, as in the docstring."""
    store = Constraints()
    values, h, k = store.fresh((2, 3)), store.fresh((2,)), store.fresh((2,))
    store.relation(values, h, (0,))
    store.relation(values, k, (0,))
    colouring, maps, closure = closed(store)
    assert same_class(colouring, h, k)
    assert closure.equal.left and not closure.relation.left
    (images,) = [maps[cell] for cell in maps if len(maps[cell][0]) == 6]
    classes = colouring.classes[h.ids]
    assert [image.tolist() for image in images] == [
        np.repeat(classes, 3).tolist()
    ]


def test_parents_that_cut_a_cell_finer_lie_below_the_others():
    """Eight units, in four blocks and in two: the four lie in the two."""
    store = Constraints()
    units = store.fresh((2, 2, 2))
    fine, coarse = store.fresh((2, 2)), store.fresh((2,))
    store.relation(units, fine, (0, 1))
    store.relation(units, coarse, (0,))
    colouring, _, closure = closed(store)
    child, parent = closure.relation.columns()
    classes = colouring.classes
    pairs = set(
        zip(classes[child].tolist(), classes[parent].tolist(), strict=True)
    )
    wanted = zip(
        classes[fine.ids].reshape(-1).tolist(),
        np.repeat(classes[coarse.ids], 2).tolist(),
        strict=True,
    )
    assert pairs == set(wanted)


def test_crossing_parents_imply_nothing():
    store = Constraints()
    units, rows, columns = (
        store.fresh((2, 3)),
        store.fresh((2,)),
        store.fresh((3,)),
    )
    store.relation(units, rows, (0,))
    store.relation(units, columns, (1,))
    _, maps, closure = closed(store)
    assert closure.size == 0
    assert sorted(len(images) for images in maps.values()) == [2]


def test_a_parent_for_each_member_is_the_member():
    store = Constraints()
    units, copies = store.fresh((3,)), store.fresh((3,))
    store.relation(units, copies, (0,))
    colouring, _, _ = closed(store)
    assert same_class(colouring, units, copies)


def test_one_parent_above_all_tells_nothing():
    store = Constraints()
    units, parent = store.fresh((1, 3)), store.fresh((1,))
    store.relation(units, parent, (0,))
    _, maps, closure = closed(store)
    assert closure.size == 0
    assert all(not images for images in maps.values())


def test_members_stand_in_the_order_of_their_first_elements():
    store = Constraints()
    a, b = store.fresh((3,)), store.fresh((3,))
    store.mark(a)
    store.mark(b)
    colouring, _, _ = closed(store)
    members = members_of(colouring)
    first = [
        colouring.representatives[classes].tolist()
        for classes in members.values()
    ]
    assert sorted(first) == [a.ids.tolist(), b.ids.tolist()]
    # A class that is alone is left out.
    store.pin(a, "why")
    assert len(members_of(closed(store)[0])) == 1


def test_pairs_are_joined_in_order():
    pairs = ImpliedPairs()
    assert [len(column) for column in pairs.columns()] == [0, 0]
    pairs.add(np.array([1]), np.array([2]))
    pairs.add(np.array([3, 4]), np.array([5, 6]))
    left, right = pairs.columns()
    assert left.tolist() == [1, 3, 4] and right.tolist() == [2, 5, 6]


def test_equal_cuts_are_found_whatever_the_numbers_of_the_parents():
    """The second parent of the first block has the larger number."""
    store = Constraints()
    values, h, k = store.fresh((2, 3)), store.fresh((2,)), store.fresh((2,))
    turned = Elements(k.ids[::-1].copy())
    store.relation(values, h, (0,))
    store.relation(values, turned, (0,))
    colouring, _, _ = closed(store)
    assert same_class(colouring, h, turned)
