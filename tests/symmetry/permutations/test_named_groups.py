"""Names of groups, and which cell and member an element belongs to."""

import numpy as np
import torch
from helpers.stages import stages, worked_example
from torch import nn

from lightning_rebasin.symmetry.permutations.cells import find_cells
from lightning_rebasin.symmetry.permutations.elements import Constraints
from lightning_rebasin.symmetry.permutations.labels import Label, Part
from lightning_rebasin.symmetry.permutations.named_groups import NamedGroups


def one_axis(elements):
    """Label of a tensor whose one dimension is split into the axes of some elements."""
    sites = tuple(range(len(elements.shape)))
    return Label((sites,), elements.shape, (Part(sites, elements),))


def named(store, states):
    return NamedGroups(
        find_cells(store.size, store.runs, store.active_tables()), states
    )


def test_the_group_of_the_worked_example_is_named_after_its_first_module():
    groups = worked_example().named
    (group,) = groups.groups.values()
    assert (group.id, group.size, group.parent) == ("0", 2, None)
    elements = np.array([0, 5, 9, 1, 6, 10])
    assert groups.members(elements).tolist() == [0, 0, 0, 1, 1, 1]
    rows, columns = worked_example().found.states["2.weight"].parts
    assert groups.groups_on(rows) == [] and len(groups.groups_on(columns)) == 1
    assert groups.cells_on(columns).tolist() == groups.groups_on(columns) * 2
    assert groups.following_on(columns) == []


def test_parents_are_named_first_and_names_are_counted():
    store = Constraints()
    units = store.fresh((2, 3), "block.weight", 0)
    store.project(units, (0,), commit=True)
    groups = named(store, {"block.weight": one_axis(units)})
    found = [
        (g.id, g.size, g.parent and g.parent.id)
        for g in groups.groups.values()
    ]
    assert found == [("block", 2, None), ("block#2", 3, "block")]


def test_a_tensor_without_a_module_gives_its_own_name():
    store = Constraints()
    units = store.fresh((3,), "table", 0)
    store.mark(units)
    groups = named(store, {"table": one_axis(units)})
    assert [g.id for g in groups.groups.values()] == ["table"]


def test_groups_stand_in_the_order_in_which_they_appear():
    """On an axis of 2 and 3 other units in turn the group of the first position comes first."""
    for first, second in ((2, 3), (3, 2)):
        store = Constraints()
        units = store.fresh((5,), "m.weight", 0)
        store.mark(type(units)(units.ids[:first]))
        store.mark(units)
        groups = named(store, {"m.weight": one_axis(units)})
        assert [g.size for g in groups.groups.values()] == [first, second]


def test_groups_that_act_only_through_others_are_named_too():
    """Units that follow two groups, of which no tensor holds an element."""
    store = Constraints()
    units = store.fresh((2, 3), "m.weight", 0)
    p, q = store.fresh((2,)), store.fresh((3,))
    store.relation(units, p, (0,))
    store.relation(units, q, (1,))
    label = one_axis(units)
    groups = named(store, {"m.weight": label})
    assert sorted(g.size for g in groups.groups.values()) == [2, 3]
    assert len(groups.following_on(label.parts[0])) == 1
    assert groups.groups_on(label.parts[0]) == []


def test_two_layers_of_one_module_share_its_name():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Parameter(torch.ones(3, 4))
            self.b = nn.Parameter(torch.ones(4, 5))
            self.c = nn.Parameter(torch.ones(5, 2))

        def forward(self, x):
            return (x @ self.a).relu() @ self.b @ self.c

    net = nn.Sequential(Net())
    found = stages(net, torch.zeros(1, 3)).named.groups.values()
    assert [(g.id, g.size) for g in found] == [("0", 4), ("0#2", 5)]
