"""Slices of a 2×3 label: nothing is constrained until what was picked is used."""

import numpy as np
from helpers.labels import Bench, parts_of

from lightning_rebasin.symmetry.permutations.label_slices import take
from lightning_rebasin.symmetry.permutations.label_views import view
from lightning_rebasin.symmetry.permutations.labels import Label, Part, plain


def test_a_slice_keeps_its_elements_and_constrains_nothing():
    bench = Bench()
    cut = take(bench.units(2, 3), 1, np.array([2, 1]), bench.store)
    assert (
        cut.shape == (2, 2)
        and parts_of(cut) == {(0,): [0, 1], (1,): [4, 3]}
        and bench.tables() == []
    )


def test_everything_is_the_label_itself():
    bench = Bench()
    label = bench.units(2, 3)
    assert take(label, 1, np.arange(3), bench.store) is label


def test_a_repeated_position_is_copied():
    bench = Bench()
    twice = take(bench.units(2, 3), 1, np.array([0, 0]), bench.store)
    assert parts_of(twice) == {(0,): [0, 1], (1,): [5, 6]}
    assert (
        bench.tables() == [("relation", [5, 6], [2, 2])]
        and bench.store.tables[0].defines
    )


def test_a_single_element_is_pending():
    bench = Bench()
    one = take(bench.units(2, 3), 1, np.array([1]), bench.store)
    assert one.dims == ((0,), ()) and [
        e.ids.tolist() for e in one.pending
    ] == [[3]]


def test_a_single_row_of_a_part_over_both_sites_keeps_its_columns():
    bench = Bench()
    label = Label(
        ((0,), (1,)),
        (2, 3),
        (Part((0, 1), bench.store.fresh((2, 3))),),
        frozenset({0}),
    )
    row = take(label, 0, np.array([1]), bench.store)
    assert (
        row.dims == ((), (0,))
        and parts_of(row) == {(0,): [3, 4, 5]}
        and not row.pinned
        and not row.pending
    )


def test_whole_rows_of_a_flattened_tensor_leave_the_columns_alone():
    bench = Bench()
    flat = view(bench.units(2, 3), (6,), bench.store)
    swapped = take(flat, 0, np.array([3, 4, 5, 0, 1, 2]), bench.store)
    assert (
        parts_of(swapped) == {(0,): [1, 0], (1,): [2, 3, 4]}
        and bench.tables() == []
    )


def test_rows_in_pieces_are_fused():
    bench = Bench()
    flat = view(bench.units(2, 3), (6,), bench.store)
    cut = take(flat, 0, np.array([1, 2, 3]), bench.store)
    assert cut.dims == ((0,),) and parts_of(cut) == {(0,): [6, 7, 8]}
    assert [kind for kind, _, _ in bench.tables()] == ["relation", "relation"]


def test_one_position_read_several_times_is_free():
    bench = Bench()
    copies = take(plain((2, 1), [0]), 1, np.array([0, 0, 0]), bench.store)
    assert (
        copies.shape == (2, 3)
        and copies.pinned == {0}
        and bench.tables() == []
    )
