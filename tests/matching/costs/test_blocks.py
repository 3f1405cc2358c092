"""Blocks: every tensor falls apart into dense arrays whose axes are whole groups, or free."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers.costs import SPECS, flats_of
from helpers.specs import blocks_spec, grouped_spec, random_state

from lightning_rebasin.matching.costs.blocks import (
    Block,
    blocks_of,
    objective_tensors,
    telling_tensors,
)
from lightning_rebasin.symmetry.actions.permutation import Permutation
from lightning_rebasin.symmetry.spec.spec import PermutationSpec


def blocks_of_tensor(spec: PermutationSpec, name: str) -> list[Block]:
    return [block for block in blocks_of(spec) if block.tensor == name]


@pytest.mark.parametrize("name", list(SPECS))
def test_blocks_cut_every_tensor_into_disjoint_parts(name: str) -> None:
    spec = SPECS[name]()
    covered = {
        n: torch.zeros(spec.tensors[n].shape)
        for n in objective_tensors(spec)
        if n in spec.maps
    }
    for block in blocks_of(spec):
        tensor = covered[block.tensor]
        places = block.take(torch.arange(tensor.numel()).reshape(tensor.shape))
        assert tuple(places.shape) == block.lengths
        assert len(block.lengths) == len(block.axes)
        tensor.view(-1)[places.reshape(-1)] += 1
    assert all(bool((tensor == 1).all()) for tensor in covered.values())


@pytest.mark.parametrize("name", list(SPECS))
def test_gathering_a_block_permutes_its_part_of_the_tensor(name: str) -> None:
    spec = SPECS[name]()
    state = random_state(spec)
    p = Permutation.random(spec, torch.Generator().manual_seed(1))
    moved = p.apply(state)
    for block in blocks_of(spec):
        gathered = block.take(state[block.tensor])
        for axis, groups in enumerate(block.axes):
            if groups:
                index = block.index(axis, flats_of(p))
                gathered = gathered.index_select(axis, index)
        assert torch.equal(gathered, block.take(moved[block.tensor]))


def test_a_plain_weight_is_one_block_and_never_copied() -> None:
    spec = PermutationSpec.from_table({"w": ("h", "k")}, {"w": (2, 3)})
    (block,) = blocks_of(spec)
    assert block.axes == (("h",), ("k",))
    assert block.lengths == (2, 3)
    assert block.groups == {"h", "k"}
    assert block.plain
    weight = torch.randn(2, 3)
    assert block.take(weight).data_ptr() == weight.data_ptr()


def test_one_unit_is_an_axis_too() -> None:
    spec = PermutationSpec.from_table({"w": ("h", None)}, {"w": (1, 3)})
    (block,) = blocks_of(spec)
    assert (block.axes, block.lengths) == ((("h",), ()), (1, 3))


def test_a_flatten_block_has_the_positions_as_a_free_axis() -> None:
    (block,) = blocks_of_tensor(blocks_spec(4, 3), "linear.weight")
    assert block.axes == ((), ("c",), ())
    weight = torch.arange(24).reshape(2, 12)
    assert torch.equal(block.take(weight), weight.reshape(2, 4, 3))


def test_copies_of_a_unit_stand_side_by_side() -> None:
    # cat([x, -x]) of four channels: unit m is at m and at 4 + m.
    (block,) = blocks_of_tensor(blocks_spec(4), "crelu.weight")
    assert block.axes == (("c",), ())
    taken = block.take(torch.arange(8))
    assert taken.tolist() == [[0, 4], [1, 5], [2, 6], [3, 7]]


def test_what_no_unit_owns_is_a_free_block() -> None:
    # Of six positions the four in the middle belong to the channels.
    mapped, free = blocks_of_tensor(blocks_spec(4), "part.weight")
    assert mapped.take(torch.arange(6)).tolist() == [1, 2, 3, 4]
    assert free.take(torch.arange(6)).tolist() == [0, 5]
    assert mapped.groups == {"c"}
    assert not free.groups


def test_axes_that_move_together_are_one_joint_axis() -> None:
    spec = grouped_spec()
    (block,) = blocks_of_tensor(spec, "conv.weight")
    assert block.axes == (("out", "in"), ())
    assert block.joint_segment(0) is block.segments[0]
    assert block.joint_segment(1) is None
    # Old group 1 comes first; its inputs stay, its outputs change places.
    p = Permutation(
        spec,
        {"g": torch.tensor([1, 0]), "out": torch.tensor([[1, 0], [0, 1]])},
    )
    index = block.index(0, flats_of(p)).reshape(2, 2, 3)
    old = torch.arange(12).reshape(2, 2, 3)
    assert torch.equal(index[0], old[1].flip(0))
    assert torch.equal(index[1], old[0])


def test_parameters_count_once_and_statistics_never() -> None:
    shapes = {"w": (4, 2), "tied": (4, 2), "bn.running_mean": (4,), "b": (3,)}
    table = {"w": ("h", None), "bn.running_mean": ("h",)}
    plain = PermutationSpec.from_table(table, shapes)
    spec = replace(plain, aliases={"tied": "w"})
    assert objective_tensors(spec) == ("w", "b")
    # b counts in the objective, but no group moves any of it.
    assert [block.tensor for block in blocks_of(spec)] == ["w"]


def test_a_spec_without_maps_has_no_blocks() -> None:
    spec = PermutationSpec.from_table({}, {"w": (2, 2)})
    assert objective_tensors(spec) == ("w",)
    assert blocks_of(spec) == ()


def test_networks_are_told_apart_by_their_matrices_or_what_there_is() -> None:
    shapes = {"w": (4, 2), "gain": (4,), "bias": (4,)}
    table = {"w": ("h", None), "gain": ("h",), "bias": ("h",)}
    spec = PermutationSpec.from_table(table, shapes)
    assert telling_tensors(spec) == ("w",)
    vectors = PermutationSpec.from_table({}, {"gain": (4,), "bias": (4,)})
    assert telling_tensors(vectors) == ("gain", "bias")
