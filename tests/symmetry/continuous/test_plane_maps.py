"""Axis maps with pairs: a dimension split for grouped queries, blocks that go, and reasons where nothing fits."""

from __future__ import annotations

import pytest
import torch
from helpers.attention import Attention, first_units, halves, proved_spec

from lightning_rebasin.symmetry import (
    AxisMap,
    Component,
    Group,
    PermutationSpec,
    Pin,
    TensorInfo,
)
from lightning_rebasin.symmetry.continuous.operations import Limit
from lightning_rebasin.symmetry.continuous.plane_maps import (
    check_planes,
    with_planes,
    with_refusals,
)
from lightning_rebasin.symmetry.continuous.planes import (
    FoundPlanes,
    Place,
    Planes,
)

HEADS = Group("heads", 2)


def spec_of(*components: Component, groups: tuple[Group, ...] = (HEADS,)):  # type: ignore[no-untyped-def]
    """A weight of eight rows on which some components act."""
    sites = ((8,), (3,))
    return PermutationSpec(
        {g.id: g for g in groups},
        {"k": TensorInfo((8, 3))},
        {"k": AxisMap("k", sites, components)},
        (Pin("k", 0, 4, 8, "order"),),
    )


BLOCKS = Component("heads", (0,), torch.arange(8).reshape(2, 4))
#: Halves: units of a head are the rows 0, 2, 1, 3.
ROWS = torch.tensor([0, 2, 1, 3, 4, 6, 5, 7])[:, None]
PLANES = Planes(
    Group("k/plane", 4, HEADS, "plane"), (Place("k", 0, ROWS, -1),)
)


def test_blocks_of_heads_become_pairs_inside_them():
    spec = with_planes(spec_of(BLOCKS), PLANES)
    (component,) = spec.maps["k"].components
    assert component.group == "k/plane"
    assert component.power == -1
    assert component.index.reshape(-1).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert list(spec.groups) == ["heads", "k/plane"]


def test_rows_of_a_head_without_pairs_stay_a_block():
    some = Planes(
        Group("k/plane", 2, HEADS, "plane"),
        (Place("k", 0, torch.tensor([[0], [2], [4], [6]]), -1),),
    )
    spec = with_planes(spec_of(BLOCKS), some)
    block, pairs = spec.maps["k"].components
    assert block.index.tolist() == [[1, 3], [5, 7]]
    assert pairs.group == "k/plane"


def test_a_group_in_the_same_places_is_refused():
    other = Group("other", 4)
    pairs = Component("other", (0,), torch.arange(8).reshape(4, 2))
    found = FoundPlanes({"k/plane": PLANES})
    checked = check_planes(spec_of(pairs, groups=(HEADS, other)), found)
    assert not checked.planes
    assert "k" in {tensor for tensor, _ in checked.refused}
    with pytest.raises(Limit):
        with_planes(spec_of(pairs, groups=(HEADS, other)), PLANES)


def test_refusals_stand_where_the_user_looks():
    spec = with_refusals(spec_of(BLOCKS), {("k", 0): "because"})
    assert spec.limits["heads"] == "because"
    assert spec.pinned[0].reason == "order; because"
    assert "because" in spec.explain("k")


def test_grouped_queries_get_sites_of_their_own():
    torch.manual_seed(0)
    spec = proved_spec(Attention(halves, heads=4, key_heads=2))
    assert spec.maps["q.weight"].sites == ((2, 2, 4), (12,))
    assert spec.maps["q.bias"].sites == ((2, 2, 4),)
    assert spec.maps["k.weight"].sites[0] == (8,)


def test_a_part_of_grouped_heads_is_refused_with_a_reason():
    torch.manual_seed(0)
    net = Attention(first_units, size=8, heads=4, key_heads=2)
    spec = proved_spec(net)
    assert all(g.kind != "plane" for g in spec.groups.values())
    assert "rotary pair" in spec.explain("q.weight")
