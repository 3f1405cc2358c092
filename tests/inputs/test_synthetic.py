"""Inputs from noise reach their class, trained network or not."""

from __future__ import annotations

import pytest
import torch
from helpers.input_spaces import Quadratic, itself
from helpers.models import BatchNormCNN, LeNet
from helpers.untouched import untouched
from torch import nn

from lightning_rebasin import connect_inputs, optimal_inputs
from lightning_rebasin.errors import ConfigurationError, DataError


def test_an_untrained_network_has_inputs_of_every_class():
    torch.manual_seed(0)
    module = LeNet()
    target = torch.arange(10)
    found = optimal_inputs(module, target, (1, 28, 28), learning_rate=0.05)
    assert found.reached == (True,) * 10
    with torch.no_grad():
        logits = module(found.inputs)
    assert torch.equal(logits.argmax(1), target)
    losses = nn.functional.cross_entropy(logits, target, reduction="none")
    assert losses.tolist() == pytest.approx(found.losses, rel=1e-3, abs=1e-5)
    assert "10 of shape (1, 28, 28), 10 at or below 0.1" in repr(found)


def test_two_of_one_class_are_ends_of_a_path():
    torch.manual_seed(0)
    module = LeNet()
    found = optimal_inputs(
        module, torch.tensor([4, 4]), (1, 28, 28), learning_rate=0.05
    )
    a, b = found.inputs
    assert not torch.allclose(a, b, atol=0.1)
    paths = connect_inputs(module, a[None], b[None], 4, points=11)
    assert paths.connected() == (True,)


def test_shrinkage_moves_the_minimum_as_it_must():
    # ½ h (x − c)² + (s / d) x² is lowest at h c / (h + 2 s / d).
    h, c, s = 2.0, torch.tensor([1.0, -0.5]), 3.0
    found = optimal_inputs(
        Quadratic(h * torch.eye(2), c),
        torch.tensor([0]),
        (2,),
        loss=itself,
        threshold=0.0,
        shrinkage=s,
        learning_rate=0.01,
    )
    assert torch.allclose(found.inputs[0], h * c / (h + s), atol=1e-3)
    assert found.reached == (False,)


def test_an_input_is_the_same_alone_and_among_others():
    torch.manual_seed(0)
    module = BatchNormCNN().double()
    options = {"steps": 30, "noise": 0.5}
    many = optimal_inputs(
        module, torch.tensor([2, 3]), (3, 8, 8), **options, chunk_size=1
    )
    (one,) = optimal_inputs(
        module, torch.tensor([2]), (3, 8, 8), **options
    ).inputs
    assert torch.allclose(one, many.inputs[0], rtol=1e-9)
    (other,) = optimal_inputs(
        module, torch.tensor([2]), (3, 8, 8), **options, seed=1
    ).inputs
    assert not torch.allclose(one, other, atol=0.1)


def test_bounds_hold():
    found = optimal_inputs(
        LeNet(),
        torch.tensor([0]),
        (1, 28, 28),
        bounds=(-0.05, 0.05),
        steps=20,
    )
    assert float(found.inputs.abs().max()) <= 0.0501


def test_the_module_and_the_generators_are_untouched():
    module = nn.Sequential(BatchNormCNN(), nn.Dropout(0.5))
    with untouched(module):
        optimal_inputs(module, torch.tensor([1]), (3, 8, 8), steps=3)


def test_wrong_input_is_refused():
    with pytest.raises(ConfigurationError, match="one target per input"):
        optimal_inputs(LeNet(), 3, (1, 28, 28))
    with pytest.raises(DataError, match=r"shape \(1, 3, 8, 8\)"):
        optimal_inputs(LeNet(), torch.tensor([3]), (3, 8, 8))
    with pytest.raises(ConfigurationError, match=r"noise=-1\.0"):
        optimal_inputs(LeNet(), torch.tensor([3]), (1, 28, 28), noise=-1.0)
    with pytest.raises(ConfigurationError, match="steps=0"):
        optimal_inputs(LeNet(), torch.tensor([3]), (1, 28, 28), steps=0)
