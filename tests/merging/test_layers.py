"""Correctable layers: which they are, what they return per channel, and how a correction is folded in."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lightning_rebasin.errors import DataError
from lightning_rebasin.merging.layers import (
    Layer,
    Moments,
    find_layers,
    measure,
    watching,
)

LAYERS: dict[str, tuple[nn.Module, tuple[int, ...], int]] = {
    # a module, the shape of its input, and the dimension of its channels
    "linear": (nn.Linear(4, 6), (3, 4), 1),
    "linear on sequences": (nn.Linear(4, 6), (3, 5, 4), 2),
    "convolution": (nn.Conv2d(4, 6, 3), (3, 4, 5, 5), 1),
    "grouped": (nn.Conv1d(4, 6, 3, groups=2), (3, 4, 7), 1),
    "without a batch": (nn.Conv2d(4, 6, 3), (4, 5, 5), 0),
    "transposed": (nn.ConvTranspose2d(4, 6, 3), (3, 4, 5, 5), 1),
    "transposed, grouped": (
        nn.ConvTranspose1d(4, 6, 3, groups=2),
        (3, 4, 5),
        1,
    ),
    "layer norm": (nn.LayerNorm(4), (3, 5, 4), 2),
    "rms norm": (nn.RMSNorm(4), (3, 5, 4), 2),
    "group norm": (nn.GroupNorm(2, 4), (3, 4, 5), 1),
    "batch norm": (nn.BatchNorm2d(4), (3, 4, 5, 5), 1),
}


def layer_of(name: str) -> tuple[Layer, Tensor, int]:
    module, shape, dim = LAYERS[name]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return Layer("x", module.eval()), x, dim


@pytest.mark.parametrize("name", LAYERS)
def test_channels_come_last_and_everything_else_is_a_sample(
    name: str,
) -> None:
    layer, x, dim = layer_of(name)
    with torch.no_grad():
        y = layer.module(x)
    found = layer.channels(y)
    assert found.shape == (y.numel() // layer.size, layer.size)
    for channel in range(layer.size):
        expected = y.select(dim, channel).reshape(-1)
        assert torch.equal(found[:, channel], expected)


@pytest.mark.parametrize("name", LAYERS)
def test_a_vector_is_laid_along_the_channels(name: str) -> None:
    layer, x, dim = layer_of(name)
    with torch.no_grad():
        y = layer.module(x)
    vector = torch.arange(float(layer.size), dtype=torch.float64)
    spread = layer.along(vector, y).expand(y.shape)
    assert spread.dtype == y.dtype
    for channel in range(layer.size):
        assert bool((spread.select(dim, channel) == channel).all())


@pytest.mark.parametrize("name", LAYERS)
def test_a_folded_correction_is_what_the_layer_returns(name: str) -> None:
    layer, x, _ = layer_of(name)
    scale = torch.linspace(0.5, 2, layer.size)
    shift = torch.linspace(-1, 1, layer.size)
    shift = shift if layer.can_shift else torch.zeros_like(shift)
    with torch.no_grad():
        before = layer.module(x)
        layer.fold(scale, shift)
        after = layer.module(x)
        expected = before * layer.along(scale, before)
        expected += layer.along(shift, before)
        torch.testing.assert_close(after, expected, atol=1e-5, rtol=1e-5)
        # back, for the other tests
        layer.fold(1 / scale, -shift / scale)


def test_a_layer_without_a_bias_cannot_shift() -> None:
    assert Layer("x", nn.Linear(2, 2)).can_shift
    assert not Layer("x", nn.Linear(2, 2, bias=False)).can_shift
    assert not Layer("x", nn.RMSNorm(2)).can_shift


def test_only_batch_norms_are_batch_norms() -> None:
    assert Layer("x", nn.BatchNorm1d(2)).is_batch_norm
    assert not Layer("x", nn.LayerNorm(2)).is_batch_norm


def test_moments_of_parts_are_those_of_the_whole() -> None:
    values = 1000 + torch.randn(50, 3, dtype=torch.float64)
    moments = Moments()
    for part in values.split(7):
        moments.update(part)
    assert moments.count == 50
    torch.testing.assert_close(moments.mean, values.mean(0))
    torch.testing.assert_close(moments.variance, values.var(0, correction=0))
    torch.testing.assert_close(moments.std, values.std(0, correction=0))


class Net(nn.Module):
    """Runs its layers in another order than it names them."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(4, 2)
        self.norm = nn.BatchNorm1d(4)
        self.absorbed = nn.Linear(4, 4)
        self.seen = nn.Linear(4, 4)
        self.twice = nn.Linear(4, 4)
        self.never = nn.Linear(4, 4)
        self.wide = nn.LayerNorm((1, 4))
        self.plain = nn.LayerNorm(4, elementwise_affine=False)
        self.tied, self.tied_too = nn.Linear(4, 4), nn.Linear(4, 4)
        self.tied_too.weight = self.tied.weight

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.absorbed(self.seen(x))))
        x = self.twice(torch.relu(self.twice(x)))
        x = self.plain(self.wide(x[:, None])[:, 0])
        return self.last(self.tied_too(self.tied(x)))


def test_layers_that_can_be_corrected_come_in_the_order_of_the_pass() -> None:
    found = find_layers(Net().eval(), [torch.randn(5, 4)])
    assert [layer.name for layer in found] == ["seen", "norm", "last"]


def test_no_batch_is_an_error() -> None:
    with pytest.raises(DataError, match="no batches"):
        find_layers(Net().eval(), [])


def test_hooks_are_gone_afterwards() -> None:
    net = Net().eval()
    layers = find_layers(net, [torch.randn(5, 4)])
    measure(net, layers, [torch.randn(5, 4)])
    assert not any(child._forward_hooks for child in net.modules())


def test_measured_moments_are_those_of_the_outputs() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    x = torch.randn(30, 3)
    layers = find_layers(net, [x])
    found = measure(net, layers, x.split(10))
    with torch.no_grad():
        first = net[0](x).double()
        second = net(x).double()
    torch.testing.assert_close(found["0"].mean, first.mean(0))
    torch.testing.assert_close(found["2"].mean, second.mean(0))
    torch.testing.assert_close(
        found["2"].variance, second.var(0, correction=0)
    )


def test_what_a_watcher_returns_takes_the_place_of_the_output() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    layers = [Layer("0", net[0])]
    x = torch.randn(5, 3)
    with torch.no_grad():
        with watching(layers, lambda layer, output: output + 1):
            replaced = net(x)
        expected = net[2](torch.relu(net[0](x) + 1))
        assert not torch.allclose(net(x), replaced)
    torch.testing.assert_close(replaced, expected)
