"""What layers see and return, taken from a running network."""

from __future__ import annotations

import pytest
import torch
from helpers.layers import layers_of
from torch import Tensor, nn

from lightning_rebasin.errors import TraceError
from lightning_rebasin.merging.refit.captures import Capture, draw, look


class Block(nn.Module):
    """A convolution behind a norm, added to a stream in another layout."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.norm.running_mean.copy_(torch.randn(4))
        self.skip = nn.Linear(3, 4)

    def stream(self, x: Tensor) -> Tensor:
        return self.skip(x.flatten(2).transpose(1, 2))

    def forward(self, x: Tensor) -> Tensor:
        # The stream comes first: what runs later is not known yet when the convolution is solved.
        stream = self.stream(x)
        y = self.norm(self.conv(x)).flatten(2).transpose(1, 2)
        return (stream + 0.5 * y).relu()


def test_a_layer_is_seen_before_the_nonlinearity_in_its_own_layout() -> None:
    """Convolution (N, C, H, W), target (N, H·W, C): the rows of inputs and outputs are those of the convolution."""
    module = Block().eval()
    x = torch.randn(5, 3, 4, 4)
    layers = {layer.name: layer for layer in layers_of(module, x[:2])}
    conv = layers["conv.weight"]
    capture = Capture(conv, 0, 5, 99, inputs=True)
    look(module, x, [capture], plain=False)
    with torch.no_grad():
        target = module.stream(x) + 0.5 * module.norm(module.conv(x)).flatten(
            2
        ).transpose(1, 2)
        patches = nn.functional.unfold(x, 3, padding=1)
    assert capture.outputs is not None
    assert capture.inputs is not None
    expected = target.reshape(5 * 16, 1, 4)
    torch.testing.assert_close(capture.outputs, expected)
    # unfold orders by channel, then by kernel position
    patches = patches.reshape(5, 3, 9, 16).permute(0, 3, 2, 1)
    torch.testing.assert_close(capture.inputs, patches.reshape(80, 1, 27))
    assert conv.joins


def test_inputs_are_taken_only_where_they_are_wanted() -> None:
    module = Block().eval()
    x = torch.randn(2, 3, 4, 4)
    capture = Capture(layers_of(module, x)[0], 0, 2, 9, inputs=False)
    look(module, x, [capture], plain=False)
    assert capture.inputs is None
    assert capture.outputs is not None


def test_several_layers_are_seen_in_one_pass() -> None:
    module = Block().eval()
    x = torch.randn(2, 3, 4, 4)
    alone, together = [], []
    for several in (alone, together):
        for number, layer in enumerate(layers_of(module, x)):
            capture = Capture(layer, 3 * number, 2, 7, inputs=True)
            several.append(capture)
    for capture in alone:
        look(module, x, [capture], plain=False)
    look(module, x, together, plain=False)
    assert len(alone) >= 2
    for one, other in zip(alone, together, strict=True):
        assert one.outputs is not None
        assert other.outputs is not None
        assert torch.equal(one.outputs, other.outputs)


def test_rows_are_drawn_without_repetition_for_each_sample_apart() -> None:
    rows = draw(30, 50, 20, 12)
    assert rows.sample.tolist() == [i for i in range(30) for _ in range(20)]
    by_sample = rows.position.reshape(30, 20)
    assert all(len(set(row)) == 20 for row in by_sample.tolist())
    assert len({tuple(sorted(row)) for row in by_sample.tolist()}) == 30
    assert set(rows.position.tolist()) == set(range(50))


def test_rows_depend_on_the_seed_and_nothing_else() -> None:
    first = draw(3, 50, 20, 12).position
    torch.manual_seed(5)
    assert torch.equal(first, draw(3, 50, 20, 12).position)
    assert not torch.equal(first, draw(3, 50, 20, 13).position)


def test_another_path_through_the_network_is_an_error() -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.two(self.one(x)) if x.sum() > 0 else x

    module = Branch().eval()
    layer = layers_of(module, torch.ones(4, 3))[1]
    capture = Capture(layer, 0, 4, 9, inputs=True)
    with pytest.raises(TraceError, match="another path"):
        look(module, -torch.ones(4, 3), [capture], plain=False)
