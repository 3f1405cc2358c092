"""The search for cells against brute force: on a few elements all automorphisms can be enumerated."""

from __future__ import annotations

import itertools
import math

import numpy as np
from helpers.stages import worked_example
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_rebasin.symmetry.permutations.cells import (
    element_map,
    find_cells,
    moving,
    random_automorphism,
)
from lightning_rebasin.symmetry.permutations.elements import (
    Constraints,
    Elements,
)


def automorphisms(store: Constraints) -> set[tuple[int, ...]]:
    """All bijections of the used elements that keep every axis and map every table onto itself, by enumeration."""
    tables = store.active_tables()
    axes = [range(b.start, b.stop) for b in store.runs]
    rows = [
        (
            t.kind == "position" or t.kind == "mark",
            set(zip(t.left.tolist(), t.right.tolist(), strict=True)),
        )
        for t in tables
    ]
    found = set()
    for parts in itertools.product(
        *(itertools.permutations(axis) for axis in axes)
    ):
        move = [m for part in parts for m in part]
        if all(
            {(move[a], b if plain else move[b]) for a, b in pairs} == pairs
            for plain, pairs in rows
        ):
            found.add(tuple(move))
    return found


def count(store: Constraints) -> float:
    found_cells = find_cells(store.size, store.runs, store.active_tables())
    total = 1
    for cell in found_cells.cells.values():
        if cell.kind == "group":
            total *= math.factorial(cell.size) ** (
                len(cell.members) // cell.size
            )
    return total


def axes(*shapes: tuple[int, ...]) -> tuple[Constraints, list[Elements]]:
    store = Constraints()
    return store, [
        store.fresh(shape, f"t{i}", 0) for i, shape in enumerate(shapes)
    ]


def test_one_axis_is_a_symmetric_group():
    store, (a,) = axes((4,))
    store.mark(a)
    assert count(store) == 24 == len(automorphisms(store))


def test_equal_axes_move_together():
    store, (a, b) = axes((4,), (4,))
    store.equal(a, b)
    assert count(store) == 24 == len(automorphisms(store))


def test_elements_that_nothing_uses_stay():
    store, (a,) = axes((4,))
    store.mark(Elements(a.ids[:2]))
    assert count(store) == 2


def test_a_subset_splits_an_axis():
    store, (a,) = axes((5,))
    store.mark(a)
    store.mark(Elements(a.ids[:2]))
    assert count(store) == 12 == len(automorphisms(store))


def test_blocks_nest():
    store, (a,) = axes((2, 3))
    store.mark(a)
    store.project(a, (0,), commit=True)
    found_cells = find_cells(store.size, store.runs, store.active_tables())
    cells = sorted(
        found_cells.cells.values(), key=lambda cell: len(cell.members)
    )
    assert [(c.kind, c.size, len(c.members)) for c in cells] == [
        ("group", 2, 2),
        ("group", 3, 6),
    ]
    assert cells[1].parents == (cells[0].number,)
    assert count(store) == 2 * 6**2


def test_two_parents_that_cut_alike_are_equal():
    store, (a, p) = axes((2, 3), (2,))
    store.mark(a)
    store.relation(a, p, (0,))
    store.project(Elements(a.ids.T.copy()), (1,), commit=True)
    assert count(store) == 2 * 6**2


def test_product_follows_both_parents():
    store, (a, p, q) = axes((2, 3), (2,), (3,))
    store.relation(a, p, (0,))
    store.relation(a, q, (1,))
    assert count(store) == 2 * 6 == len(automorphisms(store))


def test_position_marks_are_per_relation():
    store, (flat, channel) = axes((2, 2), (2,))
    store.relation(flat, channel, (0,))
    store.position(flat, 1, "place")
    assert count(store) == 2 == len(automorphisms(store))


def test_repeated_class_without_roles_is_fixed():
    store, (a,) = axes((4,))
    store.equal(a, Elements(np.roll(a.ids, 1)))
    assert count(store) == 1


def test_dead_definitions_constrain_nothing():
    store, (a,) = axes((4,))
    store.mark(a)
    dead = store.fresh((2,))
    store.relation(dead, Elements(a.ids[:2]), (0,), defines=True)
    assert count(store) == 24


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_random_automorphisms_are_automorphisms(data):
    """Whatever the constraints, what is called a symmetry is one (checked by brute force)."""
    store, arrays = axes(
        *[
            (data.draw(st.integers(1, 3)),)
            for _ in range(data.draw(st.integers(1, 3)))
        ]
    )
    pool = np.concatenate([a.ids for a in arrays])
    for _ in range(data.draw(st.integers(1, 4))):
        size = data.draw(st.integers(1, min(3, len(pool))))
        pick = lambda: Elements(
            pool[data.draw(st.permutations(range(len(pool))))[:size]]
        )
        kind = data.draw(
            st.sampled_from(["equal", "relation", "mark", "position"])
        )
        if kind == "equal":
            store.equal(pick(), pick())
        elif kind == "relation":
            store.relation(pick(), pick(), (0,))
        elif kind == "mark":
            store.mark(pick())
        else:
            store.position(pick(), 0, "test")
    found_cells = find_cells(store.size, store.runs, store.active_tables())
    allowed = automorphisms(store)
    rng = np.random.default_rng(0)
    for _ in range(4):
        move = random_automorphism(found_cells, rng)
        assert (
            tuple(element_map(found_cells.colouring, move).tolist()) in allowed
        )


def test_the_worked_example_has_one_cell_that_moves():
    """The two hidden units; inputs and outputs are pinned one by one."""
    cells = worked_example().cells
    (cell,) = cells.cells.values()
    assert (cell.kind, cell.size, cell.parents) == ("group", 2, ())
    assert not len(cells.forced)
    expected = [k in (0, 1, 5, 6, 9, 10) for k in range(13)]
    assert moving(cells).tolist() == expected
    swapped = np.arange(cells.colouring.count)
    swapped[cell.members] = cell.members[::-1]
    image = element_map(cells.colouring, swapped).tolist()
    assert image == [1, 0, 2, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12]


def test_members_of_one_parent_stand_together_in_the_order_of_the_parents():
    """Heads of value units, with the units numbered (dim, head)."""
    store, (units, heads) = axes((3, 2), (2,))
    store.relation(units, heads, (1,))
    found = find_cells(store.size, store.runs, store.active_tables())
    inner = max(found.cells.values(), key=lambda cell: len(cell.members))
    elements = found.colouring.representatives[inner.members]
    # Elements 0, 2, 4 lie in one head, 1, 3, 5 in the other.
    assert inner.size == 3
    assert {tuple(e % 2) for e in elements.reshape(2, 3)} == {
        (0, 0, 0),
        (1, 1, 1),
    }


def test_blocks_of_unequal_size_are_not_one_group():
    """Of five units three lie below one parent and two below the other: the parents cannot change places."""
    store, (units, parents) = axes((5,), (2,))
    above = Elements(parents.ids[[0, 0, 0, 1, 1]])
    store.relation(units, above, (0,))
    assert count(store) == 6 * 2 == len(automorphisms(store))


def test_what_colours_do_not_see_the_check_does():
    """A ring of four, each unit beside two others: they look alike, but cannot change places at will."""
    store, (ring,) = axes((4,))
    each = Elements(np.repeat(ring.ids, 2))
    beside = Elements(np.array([1, 3, 0, 2, 1, 3, 0, 2]))
    store.relation(each, beside, (0,))
    assert len(automorphisms(store)) == 8
    # No product of symmetric groups is found, so nothing moves.
    assert count(store) == 1


def test_what_lies_in_a_block_moves_with_it():
    store, (units, blocks) = axes((3, 2), (3,))
    store.relation(units, blocks, (0,))
    found = find_cells(store.size, store.runs, store.active_tables())
    allowed = automorphisms(store)
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(20):
        move = random_automorphism(found, rng)
        image = tuple(element_map(found.colouring, move).tolist())
        assert image in allowed
        seen.add(image)
    assert len(seen) > 10
