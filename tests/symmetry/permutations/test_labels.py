"""The label of a tensor as a value: made, renumbered, split, pinned."""

import numpy as np
import pytest
from helpers.labels import parts_of

from lightning_rebasin.symmetry.permutations.elements import Constraints
from lightning_rebasin.symmetry.permutations.labels import (
    Label,
    Part,
    canonical,
    constant,
    fixed,
    pin_dims,
    plain,
    renumber_part,
    split_site,
)


def weight(store, rows=2, columns=3):
    """Rows are elements 0, 1; columns are elements 2, 3, 4."""
    parts = (
        Part((0,), store.fresh((rows,))),
        Part((1,), store.fresh((columns,))),
    )
    return Label(((0,), (1,)), (rows, columns), parts)


def test_a_label_knows_its_shape_and_what_lies_along_a_dimension():
    label = weight(Constraints())
    assert (label.ndim, label.shape, label.dims_without(0)) == (2, (2, 3), [1])
    assert label.sites_of([0, 1]) == {0, 1} and label.sizes_of([1]) == (3,)
    assert [part.elements.ids.tolist() for part in label.parts_along(1)] == [
        [2, 3, 4]
    ]


def test_dimensions_of_size_one_have_no_site():
    label = plain((2, 1, 3), pinned=[1, 2])
    assert (
        label.dims == ((0,), (), (1,))
        and label.sizes == (2, 3)
        and label.pinned == {1}
    )
    assert label.shape == (2, 1, 3)


def test_constants_are_free_and_positions_are_fixed():
    assert constant((2, 3)).pinned == frozenset() and fixed((2, 3)).pinned == {
        0,
        1,
    }
    assert fixed((2, 3)).is_pinned(1) and not constant((2, 3)).is_pinned(1)


def test_of_several_sites_the_outermost_says_whether_a_dimension_is_pinned():
    assert Label(((0, 1),), (2, 3), pinned=frozenset({0})).is_pinned(0)
    assert not Label(((0, 1),), (2, 3), pinned=frozenset({1})).is_pinned(0)


def test_canonical_elements_are_those_of_the_first():
    store = Constraints()
    label = weight(store)
    other = store.fresh((2,))
    store.equal(label.parts[0].elements, other)
    later = Label(((0,),), (2,), (Part((0,), other),))
    assert parts_of(canonical(later, store)) == {(0,): [0, 1]}


def test_a_renumbered_part_turns_its_axes():
    part = Part((0, 1), Constraints().fresh((2, 3)))
    turned = renumber_part(part, {0: 5, 1: 2})
    assert turned.sites == (2, 5) and turned.elements.ids.tolist() == [
        [0, 3],
        [1, 4],
        [2, 5],
    ]
    same = renumber_part(part, {0: 1, 1: 4})
    assert same.sites == (1, 4) and same.elements is part.elements


def test_a_split_site_reshapes_its_elements_and_moves_the_sites_behind():
    store = Constraints()
    label = Label(
        ((0,), (1,), (2,)),
        (2, 6, 5),
        (Part((1, 2), store.fresh((6, 5))),),
        frozenset({1, 2}),
    )
    split = split_site(label, 1, (3, 2))
    assert (
        split.dims == ((0,), (1, 2), (3,))
        and split.sizes == (2, 3, 2, 5)
        and split.pinned == {1, 2, 3}
    )
    (part,) = split.parts
    assert part.sites == (1, 2, 3) and part.elements.shape == (3, 2, 5)
    assert (
        np.array_equal(part.elements.ids.ravel(), np.arange(30))
        and store.tables == []
    )


def test_factors_of_one_get_no_site():
    label = weight(Constraints())
    assert split_site(label, 1, (1, 3)) is label


@pytest.mark.parametrize(
    ("dims", "pinned", "left"),
    [([0], [0, 1], [(1,)]), ([0, 1], [0, 1, 2, 3, 4], [])],
)
def test_a_pinned_dimension_pins_its_elements_and_drops_their_part(
    dims, pinned, left
):
    store = Constraints()
    label = pin_dims(weight(store), dims, store, "because")
    assert (
        label.pinned == set(dims)
        and [part.sites for part in label.parts] == left
    )
    assert [i for table in store.tables for i in table.left.tolist()] == pinned
    assert {table.reason for table in store.tables} == {"because"}


def test_a_part_over_more_than_the_pinned_dimension_keeps_its_blocks():
    store = Constraints()
    label = Label(((0,), (1,)), (2, 3), (Part((0, 1), store.fresh((2, 3))),))
    pinned = pin_dims(label, [0], store, "because")
    (table,) = store.tables
    assert table.kind == "position" and table.right.tolist() == [
        0,
        0,
        0,
        1,
        1,
        1,
    ]
    assert [part.sites for part in pinned.parts] == [(0, 1)]
