"""Gathers and scatters: the addressed dimension is pinned, along the others tensors meet."""

import pytest
import torch
from helpers.exact import exact, log10
from helpers.labels import Bench, around, noise, parts_of

from lightning_rebasin.symmetry.permutations.labels import constant, fixed
from lightning_rebasin.symmetry.permutations.rules.base import LayoutNotCovered


def test_a_gather_pins_the_columns_it_chooses_from():
    bench = Bench()
    result = bench.run(
        "gather", (2, 4), self=bench.units(2, 3), dim=1, index=constant((2, 4))
    )
    assert bench.pins == {2, 3, 4} and parts_of(result) == {(0,): [0, 1]}


def test_rows_beyond_those_of_the_index_pin_all_of_them():
    bench = Bench()
    result = bench.run(
        "gather", (1, 4), self=bench.units(2, 3), dim=1, index=constant((1, 4))
    )
    assert bench.pins == {0, 1, 2, 3, 4} and result.shape == (1, 4)


def test_a_scatter_leaves_positions_along_the_dimension_it_writes():
    bench = Bench()
    result = bench.run(
        "scatter",
        (2, 3),
        self=bench.units(2, 3),
        dim=-1,
        index=constant((2, 4)),
        src=bench.units(2, 4),
    )
    assert bench.pins == {2, 3, 4, 7, 8, 9, 10} and bench.tables("equal") == [
        ("equal", [0, 1], [5, 6])
    ]
    assert parts_of(result) == {(0,): [0, 1]} and result.pinned == {1}
    assert bench.run(
        "scatter",
        (2, 3),
        self=bench.units(2, 3),
        dim=1,
        index=constant((2, 1)),
        value=1.0,
    ).shape == (
        2,
        3,
    )


def test_whole_rows_are_added_at_positions():
    bench = Bench()
    result = bench.run(
        "index_add",
        (2, 3),
        self=bench.units(2, 3),
        dim=0,
        index=fixed((4,)),
        source=bench.units(4, 3),
    )
    assert bench.pins == {0, 1, 5, 6, 7, 8} and bench.tables("equal") == [
        ("equal", [2, 3, 4], [9, 10, 11])
    ]
    assert parts_of(result) == {(1,): [2, 3, 4]}


@pytest.mark.parametrize("op", ["gather", "index_add"])
def test_a_number_is_itself(op):
    bench = Bench()
    assert (
        bench.run(
            op,
            (),
            self=bench.units(),
            dim=0,
            index=constant(()),
            source=bench.units(),
        ).shape
        == ()
    )


@pytest.mark.parametrize(
    ("base", "index", "out"), [((3,), (), ()), ((), (3,), (3,))]
)
def test_a_number_beside_a_vector_is_not_covered(base, index, out):
    bench = Bench()
    with pytest.raises(LayoutNotCovered):
        bench.run(
            "gather",
            out,
            self=bench.units(*base),
            dim=0,
            index=constant(index),
        )


def written(bench, shape, indices, values):
    return bench.run(
        "index_put",
        shape,
        self=bench.units(*shape),
        indices=indices,
        values=values,
        accumulate=False,
    )


def test_values_meet_the_dimensions_that_are_not_indexed():
    bench = Bench()
    values = bench.units(3)
    result = written(bench, (2, 3), [bench.tensor(fixed((4,)))], values)
    assert bench.pins == {3, 4} and parts_of(result) == {(1,): [0, 1, 2]}
    assert bench.tables("equal") == [("equal", [0, 1, 2], [5, 6, 7])]


def test_values_along_the_index_are_positions():
    bench = Bench()
    written(bench, (2, 3), [bench.tensor(fixed((4,)))], bench.units(4, 3))
    assert bench.pins == {0, 1, 2, 3, 7, 8}


@pytest.mark.parametrize(
    ("values", "pins"), [((), set()), ((5,), {0, 1, 2, 3, 4, 5, 6, 7, 8, 9})]
)
def test_a_mask_over_everything_is_pointwise_for_one_value(values, pins):
    bench = Bench()
    label = bench.units(*values)
    mask = bench.tensor(constant((2, 3)), integral=True, mask=True)
    assert (
        written(bench, (2, 3), [mask], label).shape == (2, 3)
        and bench.pins == pins
    )


def test_a_mask_over_the_first_dimensions_pins_them():
    bench = Bench()
    mask = bench.tensor(fixed((2, 3)), integral=True, mask=True)
    result = written(bench, (2, 3, 4), [mask], bench.units(5, 4))
    assert bench.pins == {0, 1, 2, 3, 4, 9, 10, 11, 12, 13} and parts_of(
        result
    ) == {(2,): [5, 6, 7, 8]}


def test_a_mask_beside_an_index_is_not_understood():
    bench = Bench()
    mask = bench.tensor(fixed((2,)), integral=True, mask=True)
    written(
        bench, (2, 3, 4), [mask, bench.tensor(fixed((5,)))], bench.units(4)
    )
    assert bench.pins == set(range(13))


@pytest.mark.parametrize(
    ("operation", "groups"),
    [
        (
            lambda h: h.clone().index_add_(0, torch.tensor([0, 2]), h[:2]),
            [(8, 1)],
        ),
        (
            lambda h: torch.zeros_like(h).scatter_(
                1, torch.arange(8).expand(3, -1), h
            ),
            [],
        ),
        (
            lambda h: h.gather(0, torch.tensor([[2], [0], [1]]).expand(-1, 8)),
            [(8, 1)],
        ),
        (lambda h: h.index_put((torch.tensor([0, 2]),), h[1]), [(8, 1)]),
        (
            lambda h: h.masked_fill(h < 0.2, 0.0).index_fill(
                0, torch.tensor([1]), 0.5
            ),
            [(8, 1)],
        ),
    ],
)
def test_units_that_are_gathered_and_scattered(operation, groups):
    spec = exact(around(operation), noise(3, 5))
    assert spec.log10_symmetries >= log10(*groups) - 1e-6
