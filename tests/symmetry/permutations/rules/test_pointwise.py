"""Pointwise operations: positions meet one by one, whatever the function."""

import pytest
import torch
import torch.nn.functional as F
from helpers.exact import exact, log10
from helpers.labels import Bench, around, noise, parts_of

from lightning_rebasin.symmetry.permutations.labels import plain


def test_operands_meet_over_their_broadcast_dimensions():
    bench = Bench()
    result = bench.run(
        "addcmul",
        (2, 3),
        self=bench.units(2, 3),
        tensor1=bench.units(3),
        tensor2=plain((1, 1)),
    )
    assert parts_of(result) == {(0,): [0, 1], (1,): [2, 3, 4]}
    assert bench.tables() == [("equal", [2, 3, 4], [5, 6, 7])]


def test_a_dimension_that_no_operand_has_holds_copies():
    result = Bench().run(
        "where",
        (4, 3),
        condition=plain((4, 1)),
        self=plain((3,)),
        other=plain(()),
    )
    assert result.shape == (4, 3) and result.pinned == frozenset()


def test_a_copy_has_the_label_of_its_source():
    bench = Bench()
    result = bench.run(
        "copy", (2, 3), self=bench.units(2, 3), src=bench.units(3)
    )
    assert parts_of(result) == {(1,): [5, 6, 7]} and bench.tables() == []


def test_constants_are_free_and_random_numbers_are_positions():
    bench = Bench()
    assert (
        bench.run("zeros_like", (2, 3), self=bench.units(2, 3)).pinned
        == frozenset()
    )
    assert bench.pins == set()
    assert bench.run("bernoulli", (2, 3), self=bench.units(2, 3)).pinned == {
        0,
        1,
    }
    assert bench.pins == {5, 6, 7, 8, 9}


def test_halves_of_a_gated_unit_move_together():
    bench = Bench()
    result = bench.run("glu", (2, 3), self=bench.units(2, 6), dim=-1)
    assert parts_of(result) == {(0,): [0, 1], (1,): [2, 3, 4]}
    assert bench.tables() == [("equal", [2, 3, 4], [5, 6, 7])]


@pytest.mark.parametrize(
    ("operation", "groups"),
    [
        (
            lambda h: (h[:, :4] * torch.sigmoid(h[:, 4:])).repeat(1, 2),
            [(4, 1)],
        ),
        (lambda h: F.glu(torch.cat([h, h.flip(1)], 1), 1), [(4, 0)]),
        (lambda h: h * (h > h.mean(1, keepdim=True)), [(8, 1)]),
        (lambda h: torch.lerp(h, h.neg(), 0.3) + F.mish(h), [(8, 1)]),
    ],
)
def test_functions_of_units(operation, groups):
    spec = exact(around(operation), noise(3, 5))
    assert spec.log10_symmetries >= log10(*groups) - 1e-6
