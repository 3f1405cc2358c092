"""Signed orders of rules: a group of 2^D · D! elements that acts on rules and leaves."""

from __future__ import annotations

import itertools
import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from lightning_rebasin.errors import TransformError
from lightning_rebasin.symmetry.actions.splits import SPLITS, leaf_sources
from lightning_rebasin.symmetry.spec.values import Group

TREES = Group("trees", 2)


def group(depth: int) -> Group:
    return Group("splits", depth, TREES, "splits")


@st.composite
def elements(draw: st.DrawFn, count: int) -> tuple[Group, list[torch.Tensor]]:
    own = group(draw(st.integers(1, 4)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    return own, [SPLITS.random(own, generator) for _ in range(count)]


@given(elements(3))
def test_splits_are_a_group(drawn):
    own, (p, q, r) = drawn
    left = SPLITS.compose(own, SPLITS.compose(own, p, q), r)
    right = SPLITS.compose(own, p, SPLITS.compose(own, q, r))
    assert torch.equal(left, right)
    for product in (
        SPLITS.compose(own, p, SPLITS.inverse(own, p)),
        SPLITS.compose(own, SPLITS.inverse(own, p), p),
    ):
        assert torch.equal(product, SPLITS.identity(own))


@given(elements(2))
def test_they_act(drawn):
    own, (p, q) = drawn
    for units in (own.size, 2**own.size):
        values = torch.randn(2, units, 3)
        once = SPLITS.apply(own, SPLITS.compose(own, p, q), values, 1)
        twice = SPLITS.apply(own, p, SPLITS.apply(own, q, values, 1), 1)
        assert torch.equal(once, twice)


def every(depth: int) -> list[tuple[int, ...]]:
    """All signed orders."""
    found = []
    for order in itertools.permutations(range(1, depth + 1)):
        for signs in itertools.product((1, -1), repeat=depth):
            found.append(
                tuple(s * o for s, o in zip(signs, order, strict=True))
            )
    return found


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_every_element_is_another_order_of_leaves(depth):
    seen = {
        tuple(leaf_sources(torch.tensor(one)).tolist()) for one in every(depth)
    }
    assert len(seen) == 2**depth * math.factorial(depth)
    elements = 10 ** SPLITS.log10_elements(depth)
    assert elements == pytest.approx(len(seen))


def test_an_element_by_hand():
    own = Group("splits", 2, None, "splits")
    turned = torch.tensor([-2, 1])
    rules = torch.tensor([[[1.0], [2.0]]])
    leaves = torch.tensor([[[0.0], [1.0], [10.0], [11.0]]])
    assert SPLITS.apply(own, turned, rules, 1).flatten().tolist() == [-2, 1]
    # new leaf 00 lies left of −z₂, so right of z₂, and left of z₁: the old leaf 01
    moved = SPLITS.apply(own, turned, leaves, 1).flatten().tolist()
    assert moved == [1, 11, 0, 10]
    assert SPLITS.distance(own, turned) == 1


def test_misuse_is_a_typed_error():
    own = group(2)
    for wrong in (
        torch.tensor([[1, 1], [1, 2]]),
        torch.tensor([1, 2]),
        torch.ones(2, 2),
    ):
        with pytest.raises(TransformError, match="each number once"):
            SPLITS.check(own, wrong)
    with pytest.raises(TransformError, match="2 rules or 4 leaves, not 3"):
        SPLITS.apply(own, SPLITS.identity(own), torch.zeros(2, 3, 1), 1)
