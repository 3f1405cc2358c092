"""Gains per channel: of norms, and of products with a parameter."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lightning_rebasin.merging.refit.flow import Flow
from lightning_rebasin.merging.refit.gains import Gain, find_gain
from lightning_rebasin.merging.refit.systems import Rows
from lightning_rebasin.symmetry.run.examples import Example
from lightning_rebasin.symmetry.trace.record import record


def gains_of(module: nn.Module, x: Tensor) -> list[Gain]:
    flow = Flow(record(module.eval(), Example((x,))), len(x))
    found = [find_gain(flow, node) for node in flow.live.values()]
    return [gain for gain in found if gain is not None]


NORMS = {
    "layer": (nn.LayerNorm(6), (3, 4, 6)),
    "layer, two dimensions": (nn.LayerNorm((4, 6)), (3, 4, 6)),
    "rms": (nn.RMSNorm(6), (3, 4, 6)),
    "group": (nn.GroupNorm(2, 4), (3, 4, 6)),
    "batch": (nn.BatchNorm1d(4), (3, 4, 6)),
}


@pytest.mark.parametrize("name", NORMS)
def test_each_channel_of_a_norm_is_scaled_by_its_own_gain(name: str) -> None:
    """With the gain doubled for one channel, exactly the numbers change that the system says belong to it."""
    module, shape = NORMS[name]
    module.eval()
    x = torch.randn(shape)
    (gain,) = gains_of(module, x)
    assert gain.gain.name == "weight"
    with torch.no_grad():
        before = module(x)
        module.weight.reshape(-1)[1] *= 2
        after = module(x)
        module.weight.reshape(-1)[1] /= 2
    samples, positions = gain.system.counts(before, 3)
    every = torch.arange(samples * positions)
    rows = Rows(every // positions, every % positions, positions)
    changed = gain.system.outputs(after, rows) != gain.system.outputs(
        before, rows
    )
    channels = changed.any(0).flatten().nonzero().flatten().tolist()
    # which channel the second number of the gain is
    slot = int((gain.gain.index.reshape(-1) == 1).nonzero())
    assert channels == [slot]
    assert (gain.norm is not None) == (name == "batch")


class Product(nn.Module):
    def __init__(self, gain: Tensor, *, left: bool = False) -> None:
        super().__init__()
        self.gain = nn.Parameter(gain)
        self.left = left

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(x)
        return self.gain * x if self.left else x * self.gain


@pytest.mark.parametrize(
    ("shape", "channels"),
    [
        ((6,), (2, -1)),
        ((4, 1), (1, -2)),
        ((4, 6), (1, -1)),
        ((1, 4, 1), (1, -2)),
        ((1,), None),
        ((3, 1, 6), None),
    ],
)
@pytest.mark.parametrize("left", [True, False])
def test_a_product_with_a_parameter_is_a_gain_where_it_has_channels(
    shape: tuple[int, ...], channels: tuple[int, int] | None, left: bool
) -> None:
    module = Product(torch.ones(shape), left=left)
    found = gains_of(module, torch.randn(3, 4, 6))
    expected = [] if channels is None else [channels]
    assert [(g.system.first, g.system.last) for g in found] == expected


@pytest.mark.parametrize(
    "use",
    [
        lambda m, x: torch.relu(x) * x,
        lambda m, x: x + m.gain * m.gain,
        lambda m, x: x / m.gain,
    ],
)
def test_other_products_are_no_gains(
    use: Callable[[nn.Module, Tensor], Tensor],
) -> None:
    module = Product(torch.ones(6))
    module.forward = lambda x: use(module, x)  # type: ignore[method-assign]
    assert not gains_of(module, torch.randn(3, 6))
