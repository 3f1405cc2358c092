"""Targets, sums and solutions, layer by layer."""

from __future__ import annotations

import copy
import math

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
    parts = [parts[0][:, 0].double() for parts in found[0]]
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


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.shared = nn.Linear(4, 5), nn.Linear(5, 5)

    def pieces(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        seen = torch.tanh(self.first(x))
        once = self.shared(seen)
        return seen, once, self.shared(torch.tanh(once))

    def forward(self, x: Tensor) -> Tensor:
        return self.pieces(x)[2]


def test_a_shared_weight_gets_mean_and_deviation_of_all_its_uses() -> None:
    """Of the outputs that it has for the inputs of before the correction: each use changes those of the next."""
    module = randomise(Twice()).double()
    states, x = two_states(module), normal(400, 4)
    layers = layers_of(module, x)
    (shared,) = [layer for layer in layers if layer.only_corrected]
    work = fitter(module, states, x, 0.0)
    with torch.no_grad():
        seen, once, _ = module.pieces(x)
        inputs = torch.cat([seen, torch.tanh(once)])
        work.fit(1, shared, work.targets({1: shared})[1])
        corrected = module.shared(inputs)
    wanted = torch.zeros_like(corrected)
    for state in states:
        end = copy.deepcopy(module)
        end.load_state_dict(state)
        with torch.no_grad():
            wanted += torch.cat(end.pieces(x)[1:]) / 2
    torch.testing.assert_close(
        corrected.mean(0), wanted.mean(0), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(
        corrected.std(0), wanted.std(0), rtol=1e-4, atol=1e-5
    )
    assert math.isfinite(float(corrected.sum()))
