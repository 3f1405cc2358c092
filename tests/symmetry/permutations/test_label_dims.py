"""Dimensions of a 2×3 label put in another order, inserted, dropped and broadcast."""

from helpers.labels import Bench, parts_of

from lightning_rebasin.symmetry.permutations.label_dims import (
    arrange,
    drop_dim,
    expand,
    insert_dim,
    insert_dims,
    insert_pinned,
    permute,
)
from lightning_rebasin.symmetry.permutations.labels import Label, Part


def test_transposed_sites_are_numbered_anew():
    turned = permute(Bench().units(2, 3), [1, 0])
    assert turned.dims == ((0,), (1,)) and turned.sizes == (3, 2)
    assert parts_of(turned) == {(0,): [2, 3, 4], (1,): [0, 1]}


def test_transposing_turns_a_part_over_both_sites():
    bench = Bench()
    label = Label(
        ((0,), (1,)),
        (2, 3),
        (Part((0, 1), bench.store.fresh((2, 3))),),
        frozenset({0}),
    )
    turned = permute(label, [1, 0])
    assert parts_of(turned) == {
        (0, 1): [[0, 3], [1, 4], [2, 5]]
    } and turned.pinned == {1}


def test_flattening_keeps_the_sites():
    label = Bench().units(2, 3)
    flat = arrange(label, [[0, 1]])
    assert (
        flat.shape == (6,)
        and flat.dims == ((0, 1),)
        and flat.parts == label.parts
    )


def test_a_site_that_nothing_lies_on_may_be_left_out():
    label = Label(
        ((0,), (1,)), (2, 3), (Part((1,), Bench().store.fresh((3,))),)
    )
    left = arrange(label, [[1]])
    assert left.shape == (3,) and parts_of(left) == {(0,): [0, 1, 2]}


def test_dimensions_of_size_one_come_and_go():
    label = Bench().units(2, 3)
    assert insert_dim(label, 1).dims == ((0,), (), (1,))
    assert insert_dims(label, [3, 0]).dims == ((), (0,), (1,), ())
    assert drop_dim(insert_dim(label, 1), 1).dims == label.dims


def test_an_inserted_position_moves_the_sites_behind_it():
    grown = insert_pinned(Bench().units(2, 3), 1, 4)
    assert grown.shape == (2, 4, 3) and grown.pinned == {1}
    assert parts_of(grown) == {(0,): [0, 1], (2,): [2, 3, 4]}
    assert insert_pinned(Bench().units(2, 3), 0, 1).dims == ((), (0,), (1,))


def test_broadcast_dimensions_are_free():
    grown = expand(Bench().units(2, 1, 3), (5, 2, 4, -1))
    assert grown.shape == (5, 2, 4, 3) and grown.pinned == frozenset()
    assert parts_of(grown) == {(1,): [0, 1], (3,): [2, 3, 4]}
