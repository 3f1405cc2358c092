"""Shares of leaves against products written out, numbers of rules and leaves, half precision."""

from __future__ import annotations

import pytest
import torch
from helpers.soft_trees import KINDS, paths

from lightning_rebasin.errors import ConfigurationError
from lightning_rebasin.trees.shapes import tree_shape


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_shares_are_the_products_along_the_paths(kind, depth):
    shape = tree_shape(kind, depth)
    generator = torch.Generator().manual_seed(depth)
    logits = torch.randn(
        shape.rules, 6, generator=generator, dtype=torch.float64
    )
    rules = torch.sigmoid(logits)
    expected = []
    for way in paths(kind, depth):
        share = torch.ones(6, dtype=torch.float64)
        for rule, left in way:
            share = share * (rules[rule] if left else 1 - rules[rule])
        expected.append(share)
    assert len(expected) == shape.leaves
    torch.testing.assert_close(
        shape.log_shares(logits).exp(), torch.stack(expected)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_leaves_below_are_counted_along_the_paths(kind):
    shape = tree_shape(kind, 3)
    ways = paths(kind, 3)
    if kind == "modified_decision_list":
        # the leaf that is fixed to 0 is a leaf all the same
        ways.append([(rule, False) for rule in range(3)])
    expected = [0.0] * shape.rules
    for way in ways:
        for rule in {rule for rule, _ in way}:
            expected[rule] += 1
    assert shape.leaves_below().tolist() == expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_keeps_what_products_would_lose(kind, dtype):
    """1 − σ(12) is 0 in half precision, and so would be every share behind it, and its gradient."""
    shape = tree_shape(kind, 3)
    logits = torch.full((shape.rules, 1), 12.0, dtype=dtype)
    logits.requires_grad_()
    found = shape.log_shares(logits)
    exact = shape.log_shares(logits.detach().double())
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found.double(), exact, rtol=2e-2, atol=1e-2)
    # the leaf farthest to the right is not forgotten
    (gradient,) = torch.autograd.grad(found[-1].sum(), logits)
    assert gradient.abs().max() > 0
    assert torch.isfinite(gradient).all()


def test_large_logits_stay_finite_in_float32():
    shape = tree_shape("non_oblivious", 3)
    logits = torch.tensor([[-1e4], [1e4], [50.0]] + [[-80.0]] * 4)
    logits.requires_grad_()
    shares = shape.log_shares(logits).exp()
    assert shares.sum().item() == pytest.approx(1)
    shares.square().sum().backward()
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize(
    ("kind", "depth", "message"),
    [("round", 2, "'round' is not a kind"), ("oblivious", 0, "at least 1")],
)
def test_impossible_shapes_are_refused(kind, depth, message):
    with pytest.raises(ConfigurationError, match=message):
        tree_shape(kind, depth)
