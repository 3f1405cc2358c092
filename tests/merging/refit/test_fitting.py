"""Targets, sums and solutions, layer by layer."""

from __future__ import annotations

import copy

import numpy as np
import torch
from helpers.layers import Stack, layers_of, normal
from helpers.models import randomise
from torch import Tensor, nn

from lightning_rebasin.merging.refit.batches import Batches
from lightning_rebasin.merging.refit.fitting import (
    Ends,
    Fitter,
)


def fitter(
    module: nn.Module, states: list[dict[str, Tensor]], x: Tensor, ridge: float
) -> Fitter:
    shares = [1 / len(states)] * len(states)
    ends = Ends(copy.deepcopy(module), states, shares)
    batches = Batches(list(x.split(40)))
    return Fitter(module, ends, batches, plain=False, ridges=(ridge,))


def two_states(module: nn.Module) -> list[dict[str, Tensor]]:
    states = []
    for seed in (1, 2):
        other = randomise(copy.deepcopy(module), seed)
        states.append(other.state_dict())
    return states


def test_targets_are_the_mean_of_what_the_ends_return() -> None:
    module = randomise(Stack(nn.BatchNorm1d(3))).double()
    states, x = two_states(module), normal(80, 4)
    found = fitter(module, states, x, 0.0).targets(
        dict(enumerate(layers_of(module, x)))
    )
    total = torch.zeros(80, 3, dtype=torch.float64)
    for state in states:
        module.load_state_dict(state)
        with torch.no_grad():
            total += module.behind(module.linear(x)) / 2
    parts = [part[:, 0].double() for part in found[0]]
    torch.testing.assert_close(torch.cat(parts), total, rtol=1e-5, atol=1e-5)


def test_a_second_layer_is_solved_for_the_merged_networks_own_inputs() -> None:
    """NumPy's least squares from what the fitted first layer gives to the mean of the ends' outputs."""
    net = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    module = randomise(net).double()
    states, x = two_states(module), normal(400, 4)
    with torch.no_grad():
        list(fitter(module, states, x, 0.0).fit_all(layers_of(module, x)))
        hidden = module[1](module[0](x))
        found = module(x)
    target = torch.zeros(400, 2, dtype=torch.float64)
    for state in states:
        end = copy.deepcopy(module)
        end.load_state_dict(state)
        with torch.no_grad():
            target += end(x) / 2
    design = np.c_[hidden.numpy(), np.ones(400)]
    solution = np.linalg.lstsq(design, target.numpy(), rcond=None)[0]
    np.testing.assert_allclose(found, design @ solution, atol=1e-5)
