"""Stacking: pieces with different elements keep their place in the stack."""

import pytest
import torch
from helpers.exact import exact, log10
from helpers.labels import Bench, around, noise, parts_of

from lightning_rebasin.symmetry.permutations.labels import (
    Label,
    Part,
    constant,
)
from lightning_rebasin.symmetry.permutations.rules.stacking import stack_labels


def test_the_worked_example_of_two_vectors():
    bench = Bench()
    stacked = stack_labels(bench.ctx, [bench.units(3), bench.units(3)], 0)
    # columns are 0, 1, 2 in the first row and 3, 4, 5 in the second; new ones are made site by site
    assert stacked.shape == (2, 3) and parts_of(stacked) == {
        (0, 1): [[6, 8, 10], [7, 9, 11]]
    }
    assert bench.tables() == [
        ("relation", [6, 8, 10], [0, 1, 2]),
        ("relation", [7, 9, 11], [3, 4, 5]),
        ("position", [6, 7, 8, 9, 10, 11], [0, 1, 0, 1, 0, 1]),
    ]
    assert all(
        table.defines for table in bench.store.tables
    ) and stacked.pinned == {0}


def test_pieces_with_the_same_elements_need_no_new_ones():
    bench = Bench()
    piece = bench.units(3)
    stacked = stack_labels(bench.ctx, [piece, piece], 0)
    assert (
        parts_of(stacked) == {(1,): [0, 1, 2]}
        and stacked.pinned == {0}
        and bench.tables("relation") == []
    )


def test_what_the_pieces_share_stays_and_what_they_do_not_is_made_anew():
    bench = Bench()
    rows = Part((0,), bench.store.fresh((2,)))
    pieces = [
        Label(
            ((0,), (1,)), (2, 3), (rows, Part((1,), bench.store.fresh((3,))))
        )
        for _ in range(2)
    ]
    stacked = bench.run(
        "stack",
        (2, 3, 2),
        tensors=[bench.tensor(piece) for piece in pieces],
        dim=-1,
    )
    assert parts_of(stacked)[0,] == [0, 1] and parts_of(stacked)[1, 2] == [
        [8, 9],
        [10, 11],
        [12, 13],
    ]


def test_a_constant_among_units_is_free_within_itself():
    bench = Bench()
    stacked = stack_labels(
        bench.ctx, [bench.units(3), bench.units(3), constant((3,))], 1
    )
    assert (
        stacked.shape == (3, 3)
        and ("mark", [8, 11, 14], [0, 0, 0]) in bench.tables()
    )


def test_parts_that_overlap_are_put_one_after_the_other():
    bench = Bench()
    whole = Label(
        ((0,), (1,)), (2, 3), (Part((0, 1), bench.store.fresh((2, 3))),)
    )
    stacked = stack_labels(bench.ctx, [whole, bench.units(2, 3)], 0)
    assert stacked.shape == (2, 2, 3)


def test_what_was_picked_out_of_a_piece_is_used():
    bench = Bench()
    pieces = [
        bench.run("select", (2,), self=bench.units(2, 3), dim=1, index=0)
        for _ in range(2)
    ]
    stack_labels(bench.ctx, pieces, 0)
    assert {2, 7} <= bench.pins


@pytest.mark.parametrize(
    ("operation", "width", "groups"),
    [
        (
            lambda h: torch.stack([h[:, :4], h[:, 4:]], 2).flatten(1),
            8,
            [(4, 2)],
        ),
        (lambda h: torch.stack([h[:, :4], h[:, 4:]], 1).amax(1), 4, [(4, 1)]),
        (lambda h: torch.stack([h, -h], 1).flatten(1), 16, [(8, 1)]),
        (
            lambda h: torch.stack([h.relu(), torch.zeros_like(h)], 0)[0],
            8,
            [(8, 1)],
        ),
    ],
)
def test_stacked_units(operation, width, groups):
    spec = exact(around(operation, width), noise(3, 5))
    assert spec.log10_symmetries >= log10(*groups) - 1e-6
