"""Convolutions of every kind: units may move in blocks of channels, pixels may not."""

import pytest
import torch
import torch.nn.functional as F
from helpers.exact import exact, log10
from helpers.labels import Bench, noise, parts_of
from torch import nn

from lightning_rebasin.symmetry.permutations.labels import Label, Part

SETTINGS = {
    "stride": [1],
    "padding": [0],
    "output_padding": [0],
    "transposed": False,
    "groups": 1,
    "bias": None,
}


def pixels(bench, channels=3, size=4):
    """A label (batch, channels, pixel) with elements for channels and for pixels."""
    parts = (
        Part((0,), bench.store.fresh((channels,))),
        Part((1,), bench.store.fresh((size,))),
    )
    return Label(((), (0,), (1,)), (channels, size), parts)


@pytest.mark.parametrize(
    ("kernel", "given", "size", "pinned"),
    [
        (1, {}, 4, False),
        (1, {"stride": [2]}, 2, True),
        (1, {"padding": [1]}, 6, True),
        (2, {}, 3, True),
    ],
)
def test_only_a_kernel_of_one_leaves_the_pixels_alone(
    kernel, given, size, pinned
):
    bench = Bench()
    result = bench.run(
        "convolution",
        (1, 2, size),
        input=pixels(bench),
        weight=bench.units(2, 3, kernel),
        **SETTINGS | given,
    )
    channels = {0, 1, 2}
    assert (3 in bench.pins) is pinned and not bench.pins & channels
    assert parts_of(result)[0,] == [7, 8] and result.is_pinned(2) is pinned


def test_a_transposed_kernel_holds_its_inputs_first():
    bench = Bench()
    bench.run(
        "convolution",
        (1, 2, 4),
        input=pixels(bench),
        weight=bench.units(3, 2, 1),
        **SETTINGS | {"transposed": True},
    )
    assert bench.tables("equal") == [("equal", [0, 1, 2], [7, 8, 9])]


def test_a_bias_meets_the_outputs():
    bench = Bench()
    bias = bench.tensor(bench.units(2))
    bench.run(
        "convolution",
        (1, 2, 4),
        input=pixels(bench),
        weight=bench.units(2, 3, 1),
        **SETTINGS | {"bias": bias},
    )
    assert ("equal", [0, 1], [9, 10]) in bench.tables("equal")


def conv(dims, *args, transposed=False, **kwargs):
    kind = f"Conv{'Transpose' if transposed else ''}{dims}d"
    return getattr(nn, kind)(*args, **kwargs)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("transposed", [False, True])
def test_convolutions_of_every_kind(dims, transposed):
    net = nn.Sequential(
        conv(dims, 2, 4, 2, transposed=transposed),
        nn.ReLU(),
        conv(dims, 4, 6, 2, groups=2, transposed=transposed),
        nn.ReLU(),
        conv(dims, 6, 6, 2, groups=6, transposed=transposed),
        nn.ReLU(),
        conv(dims, 6, 2, 1),
    )
    spec = exact(net, noise(2, 2, *[5] * dims))
    # two blocks of 2 channels in and 3 out, which swap together
    assert spec.log10_symmetries == pytest.approx(
        log10((2, 1), (2, 2), (3, 2))
    )


def test_weight_standardised_grouped_convolution():
    class Standardised(nn.Conv2d):
        def forward(self, x):
            w = F.batch_norm(
                self.weight.reshape(1, self.out_channels, -1),
                None,
                None,
                training=True,
            )
            return F.conv2d(
                x, w.view_as(self.weight), self.bias, groups=self.groups
            )

    net = nn.Sequential(
        nn.Conv2d(2, 4, 1),
        nn.ReLU(),
        Standardised(4, 6, 2, groups=2),
        nn.ReLU(),
        nn.Conv2d(6, 2, 1),
    )
    assert exact(net, noise(2, 2, 5, 5)).log10_symmetries == pytest.approx(
        log10((2, 1), (2, 2), (3, 2))
    )


def test_weights_mixed_from_several_convolutions():
    class Conditional(nn.Module):
        def __init__(self):
            super().__init__()
            self.i, self.r, self.o = (
                nn.Conv2d(3, 6, 3),
                nn.Linear(6, 4),
                nn.Conv2d(8, 2, 1),
            )
            self.w = nn.Parameter(torch.zeros(4, 8 * 6 * 9))

        def forward(self, x):
            h = F.relu(self.i(x))
            w = (self.r(h.mean((2, 3))).sigmoid() @ self.w).view(-1, 6, 3, 3)
            y = F.conv2d(h.reshape(1, -1, *h.shape[2:]), w, groups=len(x))
            return self.o(F.relu(y.view(len(x), 8, *y.shape[2:])))

    spec = exact(Conditional(), noise(2, 3, 7, 7))
    assert spec.log10_symmetries == pytest.approx(
        log10((4, 1), (6, 1), (8, 1))
    )
