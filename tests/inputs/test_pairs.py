"""What callers give is checked and brought to the network's precision."""

from __future__ import annotations

import pytest
import torch
from helpers.input_spaces import TokenClassifier
from helpers.models import mlp

from lightning_rebasin.errors import (
    ConfigurationError,
    DataError,
    NonFiniteError,
)
from lightning_rebasin.inputs.pairs import (
    check_counts,
    check_inside,
    check_numbers,
    finite,
    limits_of,
    make_pairs,
)


def test_inputs_get_the_precision_of_the_network():
    x = torch.ones(2, 3)
    for module, dtype in (
        (mlp(3, 2), torch.float32),
        (mlp(3, 2).double(), torch.float64),
    ):
        pairs = make_pairs(module, x, x.half(), 0)
        assert pairs.a.dtype == pairs.b.dtype == dtype
        assert pairs.owners.tolist() == [0, 1]


def test_the_callers_inputs_are_copied():
    a, b = torch.ones(2, 3), torch.zeros(2, 3, requires_grad=True)
    pairs = make_pairs(mlp(3, 2), a, b, 0)
    pairs.a.zero_()
    assert torch.equal(a, torch.ones(2, 3))
    assert not pairs.b.requires_grad


def test_tokens_are_embedded():
    module = TokenClassifier()
    tokens = torch.randint(11, (2, 5))
    pairs = make_pairs(module, tokens, tokens, 0, embedding="words")
    assert pairs.a.shape == (2, 5, 8)
    losses = pairs.loss.values(pairs.a, pairs.owners)
    expected = -module(tokens).log_softmax(1)[:, 0]
    assert torch.allclose(losses, expected.detach(), atol=1e-6)


def test_bounds_may_differ_by_channel():
    images = torch.zeros(2, 3, 4, 4)
    low = torch.tensor([-1.0, -2.0, -3.0])[:, None, None]
    limits = limits_of((low, 1.0), images)
    assert torch.equal((images - 9).clamp(*limits)[0, :, 0, 0], low.flatten())
    check_inside(limits, x_a=images, x_b=images + 1)
    with pytest.raises(DataError, match="x_b of pair 1 lies outside"):
        wrong = images.clone()
        wrong[1, 0] = -1.5
        check_inside(limits, x_a=images, x_b=wrong)
    assert limits_of(None, images) is None
    check_inside(None, x_a=images)


def test_rounding_is_not_outside():
    images = torch.full((1, 2), 1.0 + 1e-6)
    check_inside(limits_of((0.0, 1.0), images), x_a=images)


def test_numbers_and_counts_are_checked():
    check_numbers(weight=0.0)
    check_counts(0.1, steps=(1, 1))
    for value in (-1.0, float("inf"), float("nan")):
        with pytest.raises(ConfigurationError, match="weight="):
            check_numbers(weight=value)
    with pytest.raises(ConfigurationError, match="steps=0: must be 1"):
        check_counts(0.1, steps=(0, 1))
    for rate in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigurationError, match="learning_rate"):
            check_counts(rate)


def test_numbers_that_are_none_are_refused():
    inputs = torch.zeros(3, 2)
    inputs[1, 0] = float("inf")
    with pytest.raises(NonFiniteError, match="input 1 holds"):
        finite(inputs)
