"""What is proposed: matrices no larger than what they act on, and reasons where something is missing."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from helpers.attention import Attention, halves, proved_spec
from helpers.proofs import largest_error
from torch import Tensor, nn

from lightning_rebasin import infer_spec
from lightning_rebasin.symmetry.continuous import candidates


def two_maps(units: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, units), nn.Linear(units, 3)).double()


ROWS = torch.randn(
    5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
)


def test_matrices_that_would_be_larger_than_their_weights_give_way_to_numbers():
    units = 300
    net = two_maps(units)
    spec = infer_spec(net, ROWS, kinds="all")
    # 90000 numbers; the weights hold 300·2 + 300 + 3·300.
    assert spec.groups["0"].kind == "permutation"
    assert "90000 numbers, more than the 1800" in spec.limits["0"]
    assert "90000 numbers" in spec.explain("0.weight")
    # One number for each unit is always small.
    assert spec.groups["0/number"].size == 1
    assert largest_error(net, spec, ROWS) < 1e-9


def test_small_matrices_are_never_too_large():
    spec = infer_spec(two_maps(200), ROWS, kinds="all")
    assert spec.groups["0"].kind == "linear"


def test_large_matrices_are_fine_between_large_weights():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(600, 300), nn.Linear(300, 3))
    spec = infer_spec(net, torch.randn(4, 600), kinds="all")
    assert spec.groups["0"].kind == "linear"


def test_the_limit_of_a_rotation_is_named():
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(2, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            return self.b(x / x.norm(dim=-1, keepdim=True))

    torch.manual_seed(0)
    spec = infer_spec(Normed(), ROWS.float(), kinds="all")
    assert spec.groups["a"].kind == "orthogonal"
    assert "aten.linalg_vector_norm looks at its length" in spec.limits["a"]


def test_nobody_is_told_why_heads_are_not_mixed():
    torch.manual_seed(0)
    spec = proved_spec(Attention(halves, heads=4, key_heads=2))
    assert set(spec.limits) == {"first", "o"}


@pytest.mark.parametrize(
    ("powers", "whole"),
    [
        ({"a": 1, "b": -1}, {"a": 1, "b": -1}),
        # A reader of squares: the smallest step is one.
        ({"a": -2, "b": 4}, {"a": 1, "b": -2}),
        ({}, {}),
    ],
)
def test_exponents_become_small_whole_numbers(powers, whole):
    fractions = {name: Fraction(power) for name, power in powers.items()}
    assert candidates._whole(fractions) == whole
