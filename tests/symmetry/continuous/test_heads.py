"""Blocks of neighbouring rows are heads; everything else is not."""

from __future__ import annotations

import torch

from lightning_rebasin.symmetry import (
    AxisMap,
    Component,
    Group,
    PermutationSpec,
    TensorInfo,
)
from lightning_rebasin.symmetry.continuous.heads import (
    are_free,
    block_groups,
    is_pinned,
    parent_of,
)
from lightning_rebasin.symmetry.continuous.projections import Rows


def spec_of(
    sites: tuple[int, ...], over: tuple[int, ...], index: torch.Tensor
) -> PermutationSpec:
    size = len(index)
    return PermutationSpec(
        {"g": Group("g", size)},
        {"w": TensorInfo((6,))},
        {"w": AxisMap("w", (sites,), (Component("g", over, index),))},
    )


ROWS = Rows("w", 0, torch.arange(6))
BLOCKS = spec_of((6,), (0,), torch.arange(6).reshape(2, 3))
UNITS = spec_of((6,), (0,), torch.arange(6).reshape(2, 3).T)


def test_neighbouring_rows_are_a_block():
    assert block_groups(BLOCKS, "w", 0) == ["g"]
    assert block_groups(UNITS, "w", 0) == []
    # An inner site beside it is a block as well, an outer one is not.
    one = torch.arange(2)[:, None]
    assert block_groups(spec_of((2, 3), (0,), one), "w", 0) == ["g"]
    assert block_groups(spec_of((3, 2), (1,), one), "w", 0) == []
    assert block_groups(BLOCKS, "nothing", 0) == []


def test_units_that_may_be_rearranged_are_free():
    keys = torch.tensor([[0, 1]])
    assert are_free(UNITS, ROWS, keys)
    assert not are_free(BLOCKS, ROWS, keys)


def test_rows_that_nothing_moves_are_pinned():
    assert is_pinned(BLOCKS, ROWS)
    assert not is_pinned(UNITS, ROWS)
    assert is_pinned(UNITS, Rows("nothing", 0, torch.arange(6)))


def test_key_heads_in_the_order_of_their_group():
    second_first = torch.tensor([[3, 4, 5], [0, 1, 2]])
    group, order = parent_of(BLOCKS, ROWS, second_first)
    assert group == "g"
    assert order.tolist() == [1, 0]
    assert parent_of(BLOCKS, ROWS, torch.tensor([[0, 3]]))[0] is None
