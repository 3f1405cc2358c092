"""Rotary pairs in the layouts that networks are written in, and what has none, with the reason."""

from __future__ import annotations

import pytest
import torch
from helpers import kinds
from helpers.attention import (
    Attention,
    complex_numbers,
    first_units,
    halves,
    kinds_along,
    neighbours,
    normed,
    proved_spec,
    rotate_half,
)
from helpers.recovery import assert_planted_is_recovered

from lightning_rebasin import infer_spec

LAYOUTS = {
    "halves": halves,
    "rotate half": rotate_half,
    "neighbours": neighbours,
    "complex": complex_numbers,
}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_has_a_factor_per_pair(layout, fused):
    spec = proved_spec(Attention(LAYOUTS[layout], fused=fused))
    assert kinds_along(spec, "q.weight", 0) == {("plane", 1)}
    assert kinds_along(spec, "q.bias", 0) == {("plane", 1)}
    assert kinds_along(spec, "k.weight", 0) == {("plane", -1)}
    (group,) = [g for g in spec.groups.values() if g.kind == "plane"]
    # Two heads, four units in each.
    assert (group.instances, group.size) == (2, 4)


def test_the_hand_written_rotary_network():
    net, tokens = kinds.networks("rotary")
    spec = infer_spec(net, tokens, kinds="all")
    assert spec.groups["block.key/plane"].kind == "plane"
    assert "complex factor" in spec.explain("block.query.weight")


@pytest.mark.parametrize("packed", ["parts", "heads"])
def test_pairs_in_a_packed_projection(packed):
    spec = proved_spec(Attention(rotate_half, packed=packed))
    found = kinds_along(spec, "qkv.weight", 0)
    assert found == {("plane", 1), ("plane", -1), ("linear", 1)}


@pytest.mark.parametrize("key_heads", [1, 2])
def test_all_queries_of_a_key_head_share_its_factors(key_heads):
    spec = proved_spec(
        Attention(halves, heads=4, key_heads=key_heads, fused=False)
    )
    assert ("plane", 1) in kinds_along(spec, "q.weight", 0)
    # The order of the queries of a key head stays free.
    assert ("permutation", 1) in kinds_along(spec, "q.weight", 0)
    (group,) = [g for g in spec.groups.values() if g.kind == "plane"]
    assert (group.instances, group.size) == (key_heads, 4)


def test_units_that_are_not_turned_keep_their_linear_maps():
    spec = proved_spec(Attention(first_units, size=8))
    assert kinds_along(spec, "q.weight", 0) == {("plane", 1), ("linear", 1)}


def test_a_single_head_needs_no_parent():
    spec = proved_spec(Attention(halves, heads=1))
    (group,) = [g for g in spec.groups.values() if g.kind == "plane"]
    assert group.parent is None
    assert group.size == 4


def no_planes(net, word):
    """The spec has no pair, and says a word about why."""
    spec = proved_spec(net)
    assert all(g.kind != "plane" for g in spec.groups.values())
    name = "qkv.weight" if net.packed else "q.weight"
    assert word in spec.explain(name)
    return spec


def test_an_odd_width_has_no_pairs_and_says_so():
    no_planes(Attention(rotate_half, size=5), "odd width 5")


def test_a_norm_before_the_turn_ends_the_factors():
    no_planes(Attention(lambda x: halves(normed(x))), "aten.pow")


def test_a_gain_before_the_turn_ends_the_factors():
    no_planes(Attention(halves, gains=True), "aten.pow")


def test_a_pointwise_function_before_the_turn_ends_the_factors():
    no_planes(Attention(lambda x: halves(torch.tanh(x))), "aten.tanh")


def test_something_that_is_added_before_the_turn_ends_the_factors():
    table = torch.randn(6, 4).double()
    no_planes(Attention(lambda x: halves(x + table)), "aten.add")


def test_queries_beside_grouped_keys_in_one_weight_are_refused_with_reason():
    net = Attention(halves, heads=4, key_heads=2, packed="parts")
    no_planes(net, "stand beside keys")


def test_without_turns_nobody_speaks_of_pairs():
    spec = proved_spec(Attention(normed, fused=False))
    assert "rotary" not in str(spec)
    assert kinds_along(spec, "q.weight", 0) == {("orthogonal", 1)}


def test_planted_factors_are_recovered_without_data():
    net = Attention(rotate_half).double()
    assert_planted_is_recovered(net, proved_spec(net))
