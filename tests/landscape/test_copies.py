"""Copies for evaluation, and random numbers that are given back."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_rebasin.errors import ConfigurationError
from lightning_rebasin.landscape.copies import copy_module, isolated_rng
from lightning_rebasin.landscape.weights import weights_of


def test_copies_are_frozen_and_independent():
    net = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    clone = copy_module(net)
    assert net.training
    assert not clone.training
    assert not any(p.requires_grad for p in clone.parameters())
    clone[0].weight.zero_()
    assert bool(net[0].weight.any())


def test_a_copy_of_a_compiled_module_runs_its_own_weights():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    net[0] = torch.compile(net[0], backend="eager")
    clone = copy_module(torch.compile(net, backend="eager"))
    assert type(clone) is nn.Sequential
    assert type(clone[0]) is nn.Linear
    for tensor in weights_of(clone).values():
        tensor.zero_()
    assert not bool(clone(torch.ones(1, 2)).any())
    assert bool(net(torch.ones(1, 2)).any())


def test_data_parallel_wrappers_stay_for_their_names():
    net = nn.Sequential(nn.DataParallel(nn.Linear(2, 2)))
    assert weights_of(copy_module(net)).keys() == weights_of(net).keys()


def test_copies_made_in_inference_mode_can_be_used_outside():
    with torch.inference_mode():
        clone = copy_module(nn.Linear(2, 2))
    clone.requires_grad_()
    clone(torch.ones(1, 2)).sum().backward()
    assert clone.weight.grad is not None


def test_what_cannot_be_copied_is_named():
    net = nn.Linear(2, 2)
    net.file = (i for i in range(3))
    with pytest.raises(ConfigurationError, match="Linear cannot be copied"):
        copy_module(net)


def test_the_generator_is_given_back():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    with isolated_rng():
        torch.rand(5)
    assert torch.equal(torch.rand(2), expected)
