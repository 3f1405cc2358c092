"""Axis maps: sites, positions of members, and as few sites as will do."""

import numpy as np
import pytest
import torch
from helpers.stages import stages, worked_example
from torch import nn

from lightning_rebasin.symmetry.permutations.axis_maps import (
    build_axis_map,
    component_of,
    simplify,
)
from lightning_rebasin.symmetry.permutations.cells import find_cells
from lightning_rebasin.symmetry.permutations.elements import (
    Constraints,
    Elements,
)
from lightning_rebasin.symmetry.permutations.labels import Label, Part
from lightning_rebasin.symmetry.permutations.named_groups import NamedGroups
from lightning_rebasin.symmetry.spec.values import AxisMap, Component


def component(index, sites, group="g"):
    return Component(group, sites, torch.tensor(index))


def described(axis_map):
    found = [(c.group, c.sites, c.index.tolist()) for c in axis_map.components]
    return axis_map.sites, found


def test_the_maps_of_the_worked_example():
    maps = worked_example().assembly.maps
    units = [[0], [1]]
    assert {name: described(m) for name, m in maps.items()} == {
        "0.weight": (((2,), (3,)), [("0", (0,), units)]),
        "0.bias": (((2,),), [("0", (0,), units)]),
        "2.weight": (((2,), (2,)), [("0", (1,), units)]),
    }


def test_a_tensor_that_does_not_move_has_no_map():
    example = worked_example()
    label = example.found.states["2.bias"]
    assert build_axis_map(example.named, "2.bias", label, []) is None


def one_axis(ids):
    return Label(((0,),), ids.shape, (Part((0,), Elements(ids)),))


def two_copies():
    """Three units with two roles each, ``[x, −x]``: elements 0–2 and 3–5."""
    store = Constraints()
    x, negative = store.fresh((3,), "x", 0), store.fresh((3,), "y", 0)
    store.mark(x)
    store.equal(x, negative)
    found = find_cells(store.size, store.runs, store.active_tables())
    return NamedGroups(found, {"x": one_axis(x.ids)})


@pytest.mark.parametrize(
    ("order", "index"),
    [
        ([0, 1, 2, 3, 4, 5], [[0, 3], [1, 4], [2, 5]]),
        ([5, 4, 3, 0, 1, 2], [[2, 3], [1, 4], [0, 5]]),
        ([0, 3, 4, 1, 2, 5], [[0, 1], [3, 2], [4, 5]]),
    ],
)
def test_every_column_of_an_index_is_one_role(order, index):
    """Wherever the copies of a unit stand, a column holds the same copy of every unit."""
    named = two_copies()
    label = one_axis(np.array(order))
    (cell,) = named.groups
    rows = component_of(named, cell, label.parts[0]).index.tolist()
    assert sorted(rows) == sorted(index)
    # Rows stand in the order of the members.
    members = named.members(np.array(order))
    assert [members[row[0]] for row in rows] == [0, 1, 2]


def test_positions_of_other_units_are_left_out():
    named = two_copies()
    label = one_axis(np.array([0, 1, 2]))
    (cell,) = named.groups
    found = component_of(named, cell, label.parts[0])
    assert found.index.shape == (3, 1)


def test_sites_that_one_component_covers_are_joined():
    index = np.arange(8).reshape(8, 1).tolist()
    found = simplify(AxisMap("w", ((2, 4), (3,)), (component(index, (0, 1)),)))
    assert described(found) == (((8,), (3,)), [("g", (0,), index)])


def test_sites_of_two_dimensions_stay_apart():
    found = simplify(
        AxisMap("w", ((8,), (3,), (3,)), (component([[0], [1]], (0,)),))
    )
    assert found.sites == ((8,), (3,), (3,))


def test_sites_of_different_components_stay_apart():
    two, three = (
        component([[0], [1]], (0,), "a"),
        component([[0], [1], [2]], (1,), "b"),
    )
    found = simplify(AxisMap("w", ((2, 3),), (two, three)))
    assert found.sites == ((2, 3),)
    assert [c.sites for c in found.components] == [(0,), (1,)]


def test_a_site_on_which_nothing_depends_is_dropped():
    """The units with the positions [0, 3], [1, 4], [2, 5] of (2, 3) lie along the second site alone."""
    over_both = component([[0, 3], [1, 4], [2, 5]], (0, 1))
    found = simplify(AxisMap("w", ((2, 3),), (over_both,)))
    assert described(found) == (((2, 3),), [("g", (1,), [[0], [1], [2]])])


def test_a_site_on_which_units_differ_is_kept():
    """As above, but two units change places at the second position of the first site."""
    over_both = component([[0, 4], [1, 3], [2, 5]], (0, 1))
    found = simplify(AxisMap("w", ((2, 3),), (over_both,)))
    assert described(found) == (
        ((6,),),
        [("g", (0,), [[0, 4], [1, 3], [2, 5]])],
    )


def test_units_that_several_groups_move_have_a_component_each():
    store = Constraints()
    units = store.fresh((2, 3))
    p, q = store.fresh((2,), "p", 0), store.fresh((3,), "q", 0)
    store.relation(units, p, (0,))
    store.relation(units, q, (1,))
    found = find_cells(store.size, store.runs, store.active_tables())
    label = one_axis(units.ids.reshape(-1))
    named = NamedGroups(found, {"p": one_axis(p.ids), "q": one_axis(q.ids)})
    lost = []
    axis_map = build_axis_map(named, "w", label, lost)
    assert lost == []
    sites, components = described(axis_map)
    assert sites == ((2, 3),)
    assert sorted(components) == [
        ("p", (0,), [[0], [1]]),
        ("q", (1,), [[0], [1], [2]]),
    ]
    # In a mixed order no axis map can say it: the units are handed back.
    mixed = units.ids.reshape(-1)[[5, 1, 2, 3, 4, 0]]
    assert build_axis_map(named, "w", one_axis(mixed), lost) is None
    assert [sorted(ids.tolist()) for ids in lost] == [list(range(6))]


def test_the_positions_of_a_channel_in_a_flattened_map_are_copies():
    net = nn.Sequential(nn.Conv2d(1, 3, 2), nn.Flatten(), nn.Linear(12, 2))
    maps = stages(net, torch.zeros(1, 1, 3, 3)).assembly.maps
    positions = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert described(maps["2.weight"]) == (
        ((2,), (12,)),
        [("0", (1,), positions)],
    )


def test_the_map_that_is_built_is_simple():
    """Units over two sites of one dimension, as heads and dims are: one site of six."""
    store = Constraints()
    units = store.fresh((2, 3), "w", 0)
    store.project(units, (0,), commit=True)
    found = find_cells(store.size, store.runs, store.active_tables())
    part = Part((0, 1), units)
    label = Label(((0, 1),), (2, 3), (part,))
    named = NamedGroups(found, {"w": label})
    axis_map = build_axis_map(named, "w", label, [])
    assert axis_map.sites == ((6,),)
