"""Joins of labels with a 2×3 weight: what is equated, marked and pinned, and what an operation wishes for."""

from helpers.labels import Bench, parts_of

from lightning_rebasin.symmetry.permutations.join import (
    Wishes,
    combine_label,
    join,
)
from lightning_rebasin.symmetry.permutations.label_slices import take
from lightning_rebasin.symmetry.permutations.label_views import view
from lightning_rebasin.symmetry.permutations.labels import Label, Part, plain


def hidden(bench, units=3, batch=5):
    """The output of a layer: a pinned batch, and units."""
    return Label(
        ((0,), (1,)),
        (batch, units),
        (Part((1,), bench.store.fresh((units,))),),
        frozenset({0}),
    )


def test_the_worked_example_of_a_linear_layer():
    bench = Bench()
    weight, x, bias = bench.units(2, 3), hidden(bench), bench.units(2)
    result = join(bench.store, [(x, "bi"), (weight, "oi")], "bo")
    assert bench.tables() == [
        ("equal", [2, 3, 4], [5, 6, 7]),
        ("mark", [2, 3, 4], [0, 0, 0]),
    ]
    assert (
        result.shape == (5, 2)
        and result.pinned == {0}
        and parts_of(result) == {(1,): [0, 1]}
    )
    shifted = join(bench.store, [(result, "bo"), (bias, "o")], "bo")
    assert bench.tables("equal")[1:] == [
        ("equal", [0, 1], [8, 9])
    ] and parts_of(shifted) == {(1,): [0, 1]}


def test_positions_pin_what_they_meet():
    bench = Bench()
    result = join(
        bench.store,
        [(plain((5, 3), [0, 1]), "bi"), (bench.units(2, 3), "oi")],
        "bo",
    )
    assert bench.pins == {2, 3, 4} and parts_of(result) == {(1,): [0, 1]}


def test_letters_of_the_result_come_in_their_order():
    bench = Bench()
    result = join(bench.store, [(bench.units(2, 3), "ab")], "ba")
    assert result.shape == (3, 2) and parts_of(result) == {
        (0,): [2, 3, 4],
        (1,): [0, 1],
    }


def test_what_was_picked_out_is_pinned_when_it_is_used():
    bench = Bench()
    column = take(bench.units(2, 3), 1, [1], bench.store)
    assert bench.tables() == []
    assert join(
        bench.store, [(column, "ab")], "ab"
    ).pending == () and bench.pins == {3}


def test_blocks_of_a_flattened_weight_meet_those_of_its_input():
    """A 6-vector of 2 heads of 3 units meets a weight that is not split yet."""
    bench = Bench()
    heads = view(bench.units(2, 3), (6,), bench.store)
    join(bench.store, [(heads, "i"), (bench.units(4, 6), "oi")], "o")
    weight = list(range(9, 15))
    assert bench.tables("relation")[:2] == [
        ("relation", weight, [0, 0, 0, 1, 1, 1]),
        ("relation", weight, [2, 3, 4, 2, 3, 4]),
    ]


def wishes_of(bench, operands, out, batch=()):
    wishes = Wishes()
    join(bench.store, operands, out, batch=batch, wishes=wishes)
    return [
        (w.inner.ids.tolist(), w.outer.ids.tolist(), w.blocks, w.stack)
        for w in wishes.found.values()
    ]


def test_a_batch_letter_wishes_for_axes_of_every_matrix_of_a_stack():
    bench = Bench()
    stack, x = bench.units(2, 3, 4), plain((2, 5, 3), [0, 1, 2])
    found = wishes_of(bench, [(x, "bni"), (stack, "bio")], "bno", batch=["b"])
    # 2 matrices are elements 0 and 1; each may order its inputs 2 to 4 and its outputs 5 to 8
    assert found == [
        ([2, 3, 4], [0, 1], 2, False),
        ([5, 6, 7, 8], [0, 1], 2, False),
    ]


def test_a_part_over_two_axes_wishes_the_same_for_the_other_operand():
    bench = Bench()
    spanning = Label(
        ((0,), (1,)), (2, 3), (Part((0, 1), bench.store.fresh((2, 3))),)
    )
    found = wishes_of(
        bench, [(spanning, "ab"), (bench.units(2, 3), "ab")], "ab"
    )
    assert found == [
        ([8, 9, 10], [6, 7], 2, False),
        ([6, 7], [8, 9, 10], 3, False),
    ]


def test_axes_contracted_together_wish_for_a_stack():
    bench = Bench()
    found = wishes_of(
        bench, [(plain((2, 3)), "eh"), (bench.units(2, 3, 4), "eho")], "o"
    )
    assert found == [
        ([2, 3, 4], [0, 1], 2, True),
        ([0, 1], [2, 3, 4], 3, True),
    ]


def test_one_operand_alone_wishes_for_nothing():
    bench = Bench()
    assert wishes_of(bench, [(bench.units(2, 3), "ab")], "") == []


def test_a_wish_for_any_tensor_replaces_one_for_stacks_and_not_the_other_way_round():
    store, wishes = Bench().store, Wishes()
    inner, outer = store.fresh((3,)), store.fresh((2,))
    for stack, kept in ((True, True), (False, False), (True, False)):
        wishes.ask(inner, outer, 2, stack=stack)
        (wish,) = wishes.found.values()
        assert wish.stack is kept


def test_overlapping_parts_of_one_label_are_related():
    bench = Bench()
    parts = (
        Part((0,), bench.store.fresh((2,))),
        Part((0, 1), bench.store.fresh((2, 3))),
    )
    label = combine_label(bench.store, Label(((0,), (1,)), (2, 3), parts))
    assert [part.sites for part in label.parts] == [(0, 1)]
    assert bench.tables() == [
        ("relation", [2, 3, 4, 5, 6, 7], [0, 0, 0, 1, 1, 1])
    ]
