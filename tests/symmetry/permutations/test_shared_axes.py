"""Axes that several groups move: sites for each, or nothing at all."""

import math

import numpy as np
import pytest

from lightning_rebasin.symmetry.permutations.cells import find_cells
from lightning_rebasin.symmetry.permutations.elements import (
    Constraints,
    Elements,
)
from lightning_rebasin.symmetry.permutations.shared_axes import (
    SharedAxes,
    factorise,
)


def shared(store):
    return SharedAxes(
        find_cells(store.size, store.runs, store.active_tables())
    )


def table(rows, columns):
    """Units below ``rows`` members of one group and ``columns`` of another."""
    store = Constraints()
    units = store.fresh((rows, columns))
    p, q = store.fresh((rows,)), store.fresh((columns,))
    store.relation(units, p, (0,))
    store.relation(units, q, (1,))
    return shared(store), units


def cell_at(axes, ids):
    return int(axes._found.colouring.cell_of[ids.flat[0]])


def by_size(split):
    return {
        c.index.shape[0]: (c.sites, c.index.tolist()) for c in split.components
    }


def test_six_units_below_two_groups():
    """The example of the docstring: one axis of six."""
    axes, units = table(2, 3)
    split = axes.split(units.ids.reshape(-1))
    assert split.sites == ((2, 3),) and split.sizes == [2, 3]
    assert by_size(split) == {
        2: ((0,), [[0], [1]]),
        3: ((1,), [[0], [1], [2]]),
    }
    assert len(axes.groups_of(cell_at(axes, units.ids))) == 2


def test_two_axes_need_no_split():
    axes, units = table(2, 3)
    split = axes.split(units.ids)
    assert split.sites == ((2,), (3,))
    assert by_size(split)[3][0] == (1,)


def test_positions_in_another_order_are_found_too():
    axes, units = table(2, 3)
    split = axes.split(units.ids.T.reshape(-1))
    assert split.sites == ((3, 2),)
    assert by_size(split)[2][0] == (1,)


def test_copies_of_a_unit_are_columns_of_the_index():
    """The axis twice in a row: each member of a group has two positions more."""
    axes, units = table(2, 3)
    flat = units.ids.reshape(-1)
    split = axes.split(np.concatenate([flat, flat]))
    assert math.prod(split.sizes) == 12
    _, index = by_size(split)[2]
    assert len(index) == 2 and all(len(row) == len(index[0]) for row in index)


def test_a_mixed_order_cannot_be_split():
    """With two units exchanged no site belongs to either group alone."""
    axes, units = table(2, 3)
    flat = units.ids.reshape(-1).copy()
    flat[[0, 5]] = flat[[5, 0]]
    assert axes.split(flat) is None


def test_a_part_of_the_units_cannot_be_split():
    axes, units = table(2, 3)
    assert axes.split(units.ids.reshape(-1)[:5]) is None


def test_a_group_may_move_a_unit_in_two_ways():
    """In ``x ⊗ x`` both coordinates of a position move as the units of x do."""
    store = Constraints()
    pairs, x = store.fresh((3, 3)), store.fresh((3,))
    store.relation(pairs, x, (0,))
    store.relation(pairs, x, (1,))
    axes = shared(store)
    # Off the diagonal: (i, j) and (j, i) look alike, but have other parents.
    cell = int(axes._found.colouring.cell_of[pairs.ids[0, 1]])
    assert len(axes.groups_of(cell)) == 1
    split = axes.split(pairs.ids)
    assert split is not None
    assert sorted(c.sites for c in split.components) == [(0,), (1,)]
    assert len({c.cell for c in split.components}) == 1


def test_an_inner_group_moves_its_positions_alone():
    """Units (key head, query, dim): the query group lies in the key heads, so they get no component of their own."""
    store = Constraints()
    units = store.fresh((2, 3, 5))
    queries, dims = store.fresh((2, 3)), store.fresh((2, 5))
    store.relation(units, queries, (0, 1))
    store.relation(units, dims, (0, 2))
    heads = store.project(queries, (0,), commit=True)
    store.relation(dims, heads, (0,))
    split = shared(store).split(units.ids.reshape(-1))
    assert split.sites == ((2, 3, 5),)
    assert sorted((c.sites, c.index.shape) for c in split.components) == [
        ((0, 1), (6, 1)),
        ((0, 2), (10, 1)),
    ]


def test_elements_of_one_group_alone_are_its_positions():
    store = Constraints()
    a = store.fresh((3,))
    store.mark(a)
    split = shared(store).split(Elements(a.ids[[2, 0, 1]]).ids)
    assert by_size(split) == {3: ((0,), [[1], [2], [0]])}


@pytest.mark.parametrize("shape", [(2, 3, 4), (3, 2, 2), (4, 1, 3)])
def test_factorise_finds_the_sites_of_each_group(shape):
    a, b, c = np.unravel_index(np.arange(math.prod(shape)), shape)
    outer, inner = a * shape[1] + b, a * shape[2] + c
    (sites,), depends = factorise([outer, inner])
    assert math.prod(sites) == math.prod(shape)
    for array, own in zip((outer, inner), depends, strict=True):
        grid = array.reshape(sites)
        for k in range(len(sites)):
            assert (k in own) == bool((grid != grid.take([0], k)).any())


def test_a_period_is_a_site():
    assert factorise([np.array([0, 1, 0, 1])]) == (((2, 2),), [(1,)])
    assert factorise([np.array([0, 0, 1, 1])]) == (((2, 2),), [(0,)])
