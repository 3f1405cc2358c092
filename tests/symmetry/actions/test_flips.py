"""Flips of subtrees: a group of 2^(2^D − 1) elements that acts on rules and leaves."""

from __future__ import annotations

import itertools

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from lightning_rebasin.errors import TransformError
from lightning_rebasin.symmetry.actions.flips import FLIPS, node_sources
from lightning_rebasin.symmetry.spec.values import Group

TREES = Group("trees", 2)


def group(depth: int) -> Group:
    return Group("flips", 2**depth - 1, TREES, "flips")


@st.composite
def elements(draw: st.DrawFn, count: int) -> tuple[Group, list[torch.Tensor]]:
    own = group(draw(st.integers(1, 4)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    return own, [FLIPS.random(own, generator) for _ in range(count)]


@given(elements(3))
def test_flips_are_a_group(drawn):
    own, (p, q, r) = drawn
    left = FLIPS.compose(own, FLIPS.compose(own, p, q), r)
    right = FLIPS.compose(own, p, FLIPS.compose(own, q, r))
    assert torch.equal(left, right)
    for product in (
        FLIPS.compose(own, p, FLIPS.inverse(own, p)),
        FLIPS.compose(own, FLIPS.inverse(own, p), p),
    ):
        assert torch.equal(product, FLIPS.identity(own))


@given(elements(2))
def test_they_act(drawn):
    own, (p, q) = drawn
    for units in (own.size, own.size + 1):
        values = torch.randn(2, units, 3)
        once = FLIPS.apply(own, FLIPS.compose(own, p, q), values, 1)
        twice = FLIPS.apply(own, p, FLIPS.apply(own, q, values, 1), 1)
        assert torch.equal(once, twice)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_every_element_is_another_order_of_leaves(depth):
    size = 2**depth - 1
    seen = set()
    for flips in itertools.product((False, True), repeat=size):
        sources = node_sources(torch.tensor(flips))[size:]
        seen.add(tuple(sources.tolist()))
    assert len(seen) == 2**size


def test_a_flip_by_hand():
    own = Group("flips", 3, None, "flips")
    flip = torch.tensor([True, False, False])
    rules = torch.tensor([[[1.0], [2.0], [3.0]]])
    leaves = torch.tensor([[[10.0], [20.0], [30.0], [40.0]]])
    assert FLIPS.apply(own, flip, rules, 1).flatten().tolist() == [-1, 3, 2]
    moved = FLIPS.apply(own, flip, leaves, 1).flatten().tolist()
    assert moved == [30, 40, 10, 20]
    assert FLIPS.distance(own, flip) == pytest.approx(1 / 3)
    assert FLIPS.log10_elements(3) == pytest.approx(0.903, abs=1e-3)


def test_misuse_is_a_typed_error():
    own = group(2)
    with pytest.raises(TransformError, match="boolean tensor of shape"):
        FLIPS.check(own, torch.zeros(2, 3))
    with pytest.raises(TransformError, match="not 4"):
        FLIPS.identity(Group("odd", 4, None, "flips"))
    with pytest.raises(TransformError, match="3 rules or 4 leaves, not 5"):
        FLIPS.apply(own, FLIPS.identity(own), torch.zeros(2, 5, 1), 1)
