"""Gains are folded into weights that read them and nothing else; everything else is refused."""

from __future__ import annotations

import pytest
import torch
from helpers.proofs import largest_error
from torch import Tensor, nn

from lightning_rebasin import infer_spec
from lightning_rebasin.symmetry.continuous.gains import Gains
from lightning_rebasin.symmetry.continuous.operations import Limit
from lightning_rebasin.symmetry.spec.folds import Fold, Reader


def test_a_gain_with_its_shift_and_its_readers_is_a_fold():
    gains = Gains()
    gains.begin("g")
    gains.shift("g", "b", "here")
    gains.read("g", Reader("w", 1, "c"), "there")
    gains.read("g", Reader("v", 1), "there")
    gains.check()
    readers = (Reader("w", 1, "c"), Reader("v", 1))
    assert gains.folds() == (Fold("g", "b", readers),)


def test_a_gain_may_be_met_again_in_the_same_way():
    """A norm that is used at two places, or an example more."""
    gains = Gains()
    for _ in range(2):
        gains.begin("g")
        gains.shift("g", "b", "here")
        gains.read("g", Reader("w", 1, "c"), "there")
    gains.check()
    assert gains.folds() == (Fold("g", "b", (Reader("w", 1, "c"),)),)


def test_a_gain_that_is_met_in_two_ways_is_refused():
    differs = "differs from place to place"
    gains = Gains()
    gains.begin("g", 1.0)
    with pytest.raises(Limit, match=differs):
        gains.begin("g")
    gains.shift("g", "b", "here")
    with pytest.raises(Limit, match=differs):
        gains.shift("g", "c", "there")
    gains.begin("g", 1.0)
    # Shifted at one place, and not at the other.
    with pytest.raises(Limit, match=differs):
        gains.check()


def test_a_gain_at_the_end_of_some_branches_only_is_refused():
    gains = Gains()
    gains.begin("g")
    gains.use("w", "here")
    gains.written("g", [Reader("w", 0)])
    gains.check()
    assert gains.folds() == (Fold("g", None, (Reader("w", 0),)),)
    gains.begin("g")
    with pytest.raises(Limit, match="differs from place to place"):
        gains.check()


def test_a_layer_that_writes_something_else_keeps_its_gain():
    gains = Gains()
    gains.begin("g")
    gains.use("w", "here")
    gains.written("g", [Reader("w", 0)])
    gains.use("w", "there")
    with pytest.raises(Limit, match="writes something else as well") as caught:
        gains.check()
    assert caught.value.weight == "w"


def test_a_reader_that_is_used_elsewhere_is_named():
    gains = Gains()
    gains.begin("g")
    gains.read("g", Reader("w", 1), "the head")
    gains.use("w", "the embedding")
    with pytest.raises(Limit, match="also used at the embedding") as caught:
        gains.check()
    assert caught.value.weight == "w"


def test_a_weight_that_reads_one_norm_with_two_biases_is_refused():
    """The shift would have to go into both biases, and a reader has room for one."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Linear(3, 6)
            self.norm = nn.LayerNorm(6)
            self.weight = nn.Parameter(torch.randn(4, 6))
            self.b1, self.b2 = (nn.Parameter(torch.randn(4)) for _ in range(2))
            nn.init.normal_(self.norm.bias)

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(self.embed(x))
            one, two = (
                nn.functional.linear(y, self.weight, bias)
                for bias in (self.b1, self.b2)
            )
            return torch.tanh(one) * torch.exp(two)

    torch.manual_seed(0)
    net = Twice().double()
    rows = torch.randn(5, 3, dtype=torch.float64)
    spec = infer_spec(net, rows, kinds="all")
    assert spec.groups["weight"].kind == "permutation"
    assert "'weight' reads it in two ways" in spec.limits["weight"]
    assert largest_error(net, spec, rows) < 1e-9
