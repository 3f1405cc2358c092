"""Lookups: what is read by a computed index is pinned, a fixed shuffle is a slice."""

import numpy as np
import pytest
import torch
from helpers.exact import exact, log10
from helpers.labels import Bench, around, noise, parts_of

from lightning_rebasin.symmetry.permutations.labels import fixed
from lightning_rebasin.symmetry.permutations.rules.base import LayoutNotCovered
from lightning_rebasin.symmetry.permutations.rules.lookups import first_place


def test_a_computed_index_replaces_the_dimension_it_reads():
    bench = Bench()
    table = bench.units(2, 3)
    result = bench.run(
        "embedding", (5, 4, 3), weight=table, indices=fixed((5, 4))
    )
    assert (
        bench.pins == {0, 1}
        and parts_of(result) == {(2,): [2, 3, 4]}
        and result.pinned == {0, 1}
    )


def test_a_constant_that_reads_every_row_once_is_a_slice():
    bench = Bench()
    result = bench.run(
        "embedding",
        (2, 3),
        weight=bench.units(2, 3),
        indices=bench.constant([1, 0]),
    )
    assert (
        parts_of(result) == {(0,): [1, 0], (1,): [2, 3, 4]}
        and bench.tables() == []
    )


@pytest.mark.parametrize(
    ("index", "columns"), [([2, 0], [4, 2]), ([1, 1], [5, 6])]
)
def test_positions_selected_by_a_constant_may_repeat(index, columns):
    bench = Bench()
    result = bench.run(
        "index_select",
        (2, 2),
        self=bench.units(2, 3),
        dim=1,
        index=bench.constant(index),
    )
    assert parts_of(result)[1,] == columns and bench.pins == set()


def test_a_single_number_has_no_positions_to_select():
    bench = Bench()
    with pytest.raises(LayoutNotCovered, match="index_select of a number"):
        bench.run(
            "index_select",
            (),
            self=bench.units(),
            dim=0,
            index=bench.constant([0]),
        )


@pytest.mark.parametrize(
    ("dims", "shape", "places"),
    [([0], (5, 3, 4), {0}), ([1, 2], (2, 5), {1}), ([0, 2], (5, 3), {0})],
)
def test_the_dimensions_of_an_index_stand_where_the_indexed_ones_stood(
    dims, shape, places
):
    bench = Bench()
    label = bench.units(2, 3, 4)
    indices = [
        bench.tensor(fixed((5,))) if dim in dims else None for dim in range(3)
    ]
    result = bench.run("index", shape, self=label, indices=indices)
    assert result.pinned == places
    assert bench.pins == {
        i for dim in dims for i in label.parts[dim].elements.ids.tolist()
    }


def test_neighbours_keep_their_place():
    assert (
        first_place([1]) == 1
        and first_place([1, 2]) == 1
        and first_place([0, 2]) == 0
    )


@pytest.mark.parametrize("array", [[2, 0], [True, False, True], [-1, 0]])
def test_a_constant_index_of_one_dimension_is_a_slice(array):
    bench = Bench()
    result = bench.run(
        "index",
        (2, 2),
        self=bench.units(2, 3),
        indices=[None, bench.constant(array)],
    )
    assert sorted(parts_of(result)[1,]) == [2, 4] and bench.tables() == []


def test_a_computed_mask_makes_one_dimension_of_those_it_covers():
    bench = Bench()
    mask = bench.tensor(fixed((2, 3)), integral=True, mask=True)
    result = bench.run(
        "index", (5, 4), self=bench.units(2, 3, 4), indices=[mask]
    )
    assert (
        bench.pins == {0, 1, 2, 3, 4}
        and parts_of(result) == {(1,): [5, 6, 7, 8]}
        and result.pinned == {0}
    )
    nothing = bench.run(
        "index", (0, 4), self=bench.units(2, 3, 4), indices=[mask]
    )
    assert nothing.shape == (0, 4) and nothing.parts == ()


@pytest.mark.parametrize(
    ("mask", "out"), [([[1, 0, 1], [0, 1, 0]], (3,)), ([1, 0], (1, 3))]
)
def test_a_mask_of_bytes_is_not_covered(mask, out):
    bench = Bench()
    with pytest.raises(LayoutNotCovered, match="bytes"):
        bench.run(
            "index",
            out,
            self=bench.units(2, 3),
            indices=[bench.constant(np.array(mask, dtype=np.uint8))],
        )


def test_a_mask_beside_an_index_is_not_understood():
    bench = Bench()
    mask = bench.tensor(fixed((2,)), integral=True, mask=True)
    bench.run(
        "index",
        (5, 4),
        self=bench.units(2, 3, 4),
        indices=[mask, bench.tensor(fixed((5,)))],
    )
    assert bench.pins == set(range(9))


def test_a_value_that_python_reads_is_pinned():
    bench = Bench()
    bench.run("_local_scalar_dense", self=bench.units(2, 3))
    assert bench.pins == set(range(5))


@pytest.mark.parametrize(
    ("operation", "groups"),
    [
        (
            lambda h: h.index_select(
                1, torch.tensor([3, 1, 0, 2, 7, 6, 5, 4])
            ),
            [(8, 1)],
        ),
        (lambda h: h[:, torch.tensor([1, 0, 2, 3, 4, 5, 6, 7])], [(8, 1)]),
        (lambda h: h[torch.arange(3), :][h.sum(1).argsort() * 0], [(8, 1)]),
        (
            lambda h: h[
                :,
                torch.randperm(8, generator=torch.Generator().manual_seed(0)),
            ],
            [(8, 0)],
        ),
    ],
)
def test_units_that_are_looked_up(operation, groups):
    spec = exact(around(operation), noise(3, 5))
    assert spec.log10_symmetries >= log10(*groups) - 1e-6


def test_rows_of_a_constant_are_compared_as_positions():
    bench = Bench()
    twice = bench.constant(np.array([-1, 2]))
    result = bench.run(
        "index", (2, 2), self=bench.units(2, 3), indices=[None, twice]
    )
    # both are the last column, so this is a lookup and no slice
    assert bench.pins == {2, 3, 4} and (1,) not in parts_of(result)
