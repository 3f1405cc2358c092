"""Solutions are written so that the network computes them."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers.layers import Stack, layers_of, normal
from helpers.models import randomise
from torch import Tensor, nn

from lightning_rebasin.merging.refit.squares import Sums
from lightning_rebasin.merging.refit.writing import effective, write


class Gain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor([2.0, -0.5, 0.0]))

    def forward(self, x: Tensor) -> Tensor:
        return 3 * (self.gain * x)


BEHIND = {
    "nothing": lambda: nn.Identity(),
    "norm": lambda: nn.BatchNorm1d(3),
    "norm without gain": lambda: nn.BatchNorm1d(3, affine=False),
    "gain": Gain,
}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", BEHIND)
def test_effective_weights_compute_what_the_network_does(
    name: str, bias: bool
) -> None:
    module = randomise(Stack(BEHIND[name](), bias=bias)).double()
    x = normal(50, 4)
    (layer,) = layers_of(module, x)
    weight, shift = effective(layer, module.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(
            x @ weight[0] + shift[0], module.behind(module.linear(x))
        )


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", BEHIND)
def test_written_weights_are_computed_by_the_network(
    name: str, bias: bool
) -> None:
    module = randomise(Stack(BEHIND[name](), bias=bias)).double()
    x = normal(50, 4)
    (layer,) = layers_of(module, x)
    sums = Sums(1, 4, 3, x.device)
    sums.update(x[:, None], torch.zeros(50, 1, 3))
    weight, shift = normal(1, 4, 3, seed=1), normal(1, 3, seed=2)
    if not layer.intercept:
        shift = torch.zeros_like(shift)
    state = dict(module.state_dict())
    if name == "gain":
        module.behind.gain.data[2] = 0
    write(layer, state, weight, shift, sums)
    expected = x @ weight[0] + shift[0]
    with torch.no_grad():
        found = module.behind(module.linear(x))
    if name == "gain":
        # a gain of zero hides its output: what was there stays
        assert bool((found[:, 2] == 0).all())
        found, expected = found[:, :2], expected[:, :2]
    torch.testing.assert_close(found, expected)


def test_the_statistics_of_an_absorbed_norm_are_true() -> None:
    """Estimated again on the same data they come out the same, so that nothing changes."""
    module = randomise(Stack(nn.BatchNorm1d(3))).double()
    x = normal(50, 4)
    (layer,) = layers_of(module, x)
    sums = Sums(1, 4, 3, x.device)
    sums.update(x[:, None], torch.zeros(50, 1, 3))
    state = dict(module.state_dict())
    write(layer, state, normal(1, 4, 3, seed=1), normal(1, 3), sums)
    with torch.no_grad():
        seen = module.linear(x)
    norm = module.behind
    torch.testing.assert_close(norm.running_mean, seen.mean(0))
    variance = seen.var(0, correction=0)
    torch.testing.assert_close(norm.running_var, variance)


@pytest.mark.parametrize(
    "norm", [nn.LayerNorm(4), nn.BatchNorm1d(4), nn.RMSNorm(4)]
)
def test_a_norm_of_its_own_is_scaled_and_shifted(norm: nn.Module) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = copy.deepcopy(norm)

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(self.norm(torch.sin(x)))

    module = randomise(Net()).double()
    x = normal(50, 4)
    (layer,) = layers_of(module, x)
    with torch.no_grad():
        before = module.norm(torch.sin(x))
    sums = Sums(4, 1, 1, x.device)
    sums.update(before[:, :, None], torch.zeros(50, 4, 1))
    weight = 1 + normal(4, 1, 1, seed=1).abs()
    shift = normal(4, 1, seed=2)
    if not layer.intercept:
        shift = torch.zeros_like(shift)
    write(layer, dict(module.state_dict()), weight, shift, sums)
    with torch.no_grad():
        after = module.norm(torch.sin(x))
    expected = before * weight[:, 0, 0] + shift[:, 0]
    torch.testing.assert_close(after, expected)
