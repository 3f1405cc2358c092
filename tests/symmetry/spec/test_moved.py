"""Which positions move: over sites of one dimension and of several."""

import torch
from helpers.specs import grouped_spec

from lightning_rebasin.symmetry import (
    AxisMap,
    Component,
)
from lightning_rebasin.symmetry.spec.moved import count_moved, moved_positions


def test_moved_positions_over_sites():
    spec = grouped_spec(2, 3, 2)
    assert [
        moved_positions(spec.maps["conv.weight"], dim).tolist()
        for dim in range(3)
    ] == [
        [True] * 4,
        [True] * 3,
        [False] * 3,
    ]
    part = AxisMap(
        "w", ((2, 3), (2,)), (Component("h", (1,), torch.tensor([[0], [2]])),)
    )
    assert moved_positions(part, 0).tolist() == [
        True,
        False,
        True,
        True,
        False,
        True,
    ]
    assert moved_positions(part, 1).tolist() == [False, False]


def test_an_empty_map_moves_nothing():
    assert count_moved(AxisMap("w", ((2, 3), (2,)), ()), 0) == 0


def test_both_dimensions_of_one_component_move():
    # Units over both dimensions of a 2×3 tensor: two positions, (0, 0) and (1, 2).
    component = Component("h", (0, 1), torch.tensor([[0], [5]]))
    axis_map = AxisMap("w", ((2,), (3,)), (component,))
    assert moved_positions(axis_map, 0).tolist() == [True, True]
    assert moved_positions(axis_map, 1).tolist() == [True, False, True]
    assert (count_moved(axis_map, 0), count_moved(axis_map, 1)) == (2, 2)
