"""Gains stored as their distance from 1, and gains at the end of a branch: folded where they may be, and traps."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers.streams import (
    HIDDEN,
    IDS,
    WIDTH,
    Stream,
    kind_of,
    proved,
    randomised,
)
from torch import Tensor, nn

from lightning_rebasin import infer_spec_many
from lightning_rebasin.symmetry import PermutationSpec


class FromOne(nn.Module):
    """An RMS norm that multiplies with ``1 + w``, as Gemma's does."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        length = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        return x * length * (1.0 + self.weight)


class Scaled(Stream):
    """The block's output is multiplied by a gain before it is added to the stream (LayerScale)."""

    def __init__(self, norm: Callable[[int], nn.Module] = nn.RMSNorm) -> None:
        super().__init__(norm)
        self.scale = nn.Parameter(torch.ones(WIDTH))

    def block(self, h: Tensor) -> Tensor:
        return super().block(h) * self.scale


class ScaledInParts(Scaled):
    """Views stand between the layer and its gain."""

    def block(self, h: Tensor) -> Tensor:
        written = Stream.block(self, h).flatten(0, 1)
        return (written * self.scale).unflatten(0, IDS.shape)


def assert_folds(
    net: nn.Module, spec: PermutationSpec, **wanted: float
) -> None:
    """In canonical gauge some tensors have one value, the function is the same, and once is enough."""
    before = net(IDS)
    canonical = spec.canonicalise(net.state_dict())
    for name, value in wanted.items():
        tensor = canonical[name.replace("__", ".")]
        assert torch.equal(tensor, torch.full_like(tensor, value))
    net.load_state_dict(canonical)
    torch.testing.assert_close(net(IDS), before, rtol=1e-9, atol=1e-9)
    again = spec.canonicalise(canonical)
    for name, tensor in canonical.items():
        torch.testing.assert_close(again[name], tensor)


def test_a_gain_may_be_stored_as_its_distance_from_one() -> None:
    net = randomised(Stream(FromOne))
    spec = proved(net, IDS)
    assert kind_of(spec, "up.weight", 1) == "orthogonal"
    assert {fold.offset for fold in spec.folds} == {1.0}
    assert_folds(net, spec, first__weight=0.0, last__weight=0.0)
    assert PermutationSpec.from_dict(spec.to_dict()).folds == spec.folds


@pytest.mark.parametrize("make", [Scaled, ScaledInParts])
def test_a_gain_at_the_end_of_a_branch_goes_into_its_writer(
    make: Callable[[], Scaled],
) -> None:
    net = randomised(make())
    spec = proved(net, IDS)
    assert kind_of(spec, "down.weight", 0) == "orthogonal"
    assert_folds(net, spec, scale=1.0, first__weight=1.0)


def test_around_the_mean_behind_layer_norms() -> None:
    net = randomised(Scaled(nn.LayerNorm))
    spec = proved(net, IDS)
    assert kind_of(spec, "down.weight", 0) == "orthogonal_mean"
    assert_folds(net, spec, scale=1.0)


def test_several_examples_are_one_network() -> None:
    net = randomised(Scaled(nn.LayerNorm))
    spec = infer_spec_many(net, [IDS, IDS[:1, :3]], kinds="all")
    assert kind_of(spec, "down.weight", 0) == "orthogonal_mean"
    assert_folds(net, spec, scale=1.0)


class SharedNorm(Stream):
    """One norm stands before the block and before the head."""

    def read(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.first(x))
        return found


def test_a_norm_may_be_used_twice() -> None:
    net = randomised(SharedNorm())
    # It is traced, but never used.
    del net.last
    spec = proved(net, IDS)
    assert kind_of(spec, "up.weight", 1) == "orthogonal_mean"
    assert len(spec.folds) == 1
    assert_folds(net, spec, first__weight=1.0, first__bias=0.0)


class Images(nn.Module):
    """A norm of the channels before a convolution that sees zeros beside the image."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 1)
        self.norm = nn.LayerNorm(6)
        self.down = nn.Conv2d(6, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        channels_last = self.stem(x).permute(0, 2, 3, 1)
        normed: Tensor = self.norm(channels_last).permute(0, 3, 1, 2)
        found: Tensor = self.down(normed)
        return found.tanh()


def test_a_shift_does_not_go_into_the_bias_of_a_convolution() -> None:
    net = randomised(Images())
    x = torch.randn(2, 2, 4, 4).double()
    spec = proved(net, x)
    assert kind_of(spec, "down.weight", 1) == "orthogonal_mean"
    (fold,) = spec.folds
    assert not fold.absorbs_shift
    before = net(x)
    net.load_state_dict(spec.canonicalise(net.state_dict()))
    torch.testing.assert_close(net(x), before, rtol=1e-9, atol=1e-9)


class WrittenTwice(Scaled):
    """What the layer writes also goes around its gain."""

    def block(self, h: Tensor) -> Tensor:
        written = Stream.block(self, h)
        return written * self.scale + written


class SharedWriter(Scaled):
    """One layer ends two branches, of which only one has a gain."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Parameter(torch.zeros(1, HIDDEN))

    def read(self, x: Tensor) -> Tensor:
        return super().read(x + self.down(self.other))


class AddedBefore(Scaled):
    """The gain multiplies the whole stream."""

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        whole = x + Stream.block(self, self.first(x))
        return self.read(whole * self.scale + x)


class AlsoAdded(Stream):
    """``1 + w`` is a gain, and is added to the stream as well."""

    def __init__(self) -> None:
        super().__init__(FromOne)

    def read(self, x: Tensor) -> Tensor:
        return super().read(x + (1.0 + self.last.weight))


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (WrittenTwice, "scale"),
        (SharedWriter, "writes something else"),
        (AddedBefore, "scale"),
        (AlsoAdded, "last.weight"),
    ],
)
def test_traps(make: Callable[[], Stream], names: str) -> None:
    net = randomised(make())
    spec = proved(net, IDS)
    assert not kind_of(spec, "up.weight", 1).startswith("orthogonal")
    assert names in " ".join(spec.limits.values())
