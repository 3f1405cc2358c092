"""Every kind of layer, read as a linear system, against the operation itself and against a dense solve."""

import pytest
import torch
from helpers.layers import normal
from torch import nn

from lightning_rebasin import refit
from lightning_rebasin.merging.refit.systems import (
    Convolution,
    Rows,
)

CONVOLUTIONS = {
    "1d": (nn.Conv1d(4, 6, 3), (9,)),
    "strided, padded": (
        nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=1),
        (7, 6),
    ),
    "dilated": (nn.Conv2d(4, 6, 3, dilation=2, padding=2), (7, 6)),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2, padding=1), (5, 5)),
    "depthwise": (nn.Conv2d(4, 8, 3, groups=4), (5, 5)),
    "3d": (nn.Conv3d(4, 6, 2, padding=1), (2, 3, 3)),
    "reflected": (
        nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
        (5, 5),
    ),
    "circular": (nn.Conv1d(4, 6, 3, padding=1, padding_mode="circular"), (6,)),
    "same": (nn.Conv2d(4, 6, 3, padding="same"), (5, 5)),
    "transposed": (
        nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1),
        (4, 3),
    ),
    "transposed, grouped, dilated": (
        nn.ConvTranspose1d(4, 6, 3, stride=3, dilation=2, groups=2),
        (5,),
    ),
}


def system_of(layer):
    return Convolution(
        layer.groups,
        layer.stride,
        layer.padding if not isinstance(layer.padding, str) else (0, 0),
        layer.dilation,
        layer.kernel_size,
        layer.transposed,
    )


@pytest.mark.parametrize(
    "name",
    [n for n in CONVOLUTIONS if n not in {"reflected", "circular", "same"}],
)
def test_patches_times_matrix_is_the_convolution(name):
    layer, size = CONVOLUTIONS[name]
    layer = layer.double()
    x = normal(3, 4, *size)
    y = layer(x) - layer.bias.reshape(1, -1, *[1] * len(size))
    system = system_of(layer)
    samples, positions = system.counts(y, 3)
    every = torch.arange(samples * positions)
    rows = Rows(every // positions, every % positions, positions)
    inputs = system.inputs({"input": x}, y, rows)
    product = torch.einsum("rgn,gnm->rgm", inputs, system.matrix(layer.weight))
    torch.testing.assert_close(product, system.outputs(y, rows))


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_refitted_convolution_is_the_dense_solution(name):
    """Behind a first layer that differs, the second solves a least-squares problem: autograd finds the same minimum."""
    layer, size = CONVOLUTIONS[name]

    def build(seed):
        torch.manual_seed(seed)
        again = type(layer)(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,
            stride=layer.stride,
            padding=layer.padding,
            dilation=layer.dilation,
            groups=layer.groups,
            padding_mode=layer.padding_mode,
            **(
                {"output_padding": layer.output_padding}
                if layer.transposed
                else {}
            ),
        )
        points = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[len(size)]
        return nn.Sequential(points(2, 4, 1), nn.Tanh(), again).double()

    nets = [build(seed) for seed in (1, 2)]
    x = normal(64, 2, *size)
    result = refit(
        build(0), [net.state_dict() for net in nets], [x], ridge=0.0
    )
    fitted = x[:56]
    new = result.module
    with torch.no_grad():
        target = (nets[0](fitted) + nets[1](fitted)) / 2
        hidden = new[1](new[0](fitted))
    # The gradient of the squared error vanishes at the minimum of a convex problem.
    for parameter in new[2].parameters():
        parameter.requires_grad_()
    error = (new[2](hidden) - target).square().mean()
    gradients = torch.autograd.grad(error, list(new[2].parameters()))
    assert result.method == "refit"
    for gradient in gradients:
        assert gradient.abs().max() < 1e-9
