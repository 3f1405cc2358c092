"""What looks at lengths and means: which rotations are left, and what is no norm at all."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from helpers.proofs import largest_error
from torch import Tensor, nn

from lightning_rebasin import infer_spec

ROWS = torch.randn(
    7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
)


class Normed(nn.Module):
    """A map, something that looks at the result as a whole, and a reader."""

    def __init__(self, norm: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 6), nn.Linear(6, 2)
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.norm(self.a(x)))


def rms(h: Tensor) -> Tensor:
    return h * (h.pow(2).mean(-1, keepdim=True) + 0.1).rsqrt()


def by_hand(h: Tensor) -> Tensor:
    centred = h - h.mean(-1, keepdim=True)
    return centred / (h.var(-1, keepdim=True) + 0.1).sqrt()


def fused(h: Tensor) -> Tensor:
    return F.layer_norm(h, (6,))


NORMS: dict[str, tuple[Callable[[Tensor], Tensor], str, str]] = {
    "rms": (rms, "orthogonal", "looks at its length"),
    "length": (
        lambda h: h / h.norm(dim=-1, keepdim=True),
        "orthogonal",
        "looks at its length",
    ),
    "fused rms": (
        lambda h: F.rms_norm(h, (6,)),
        "orthogonal",
        "looks at its length",
    ),
    "layer norm": (fused, "orthogonal_mean", "looks at its mean"),
    "layer norm by hand": (by_hand, "orthogonal_mean", "looks at its mean"),
    "mean only": (
        lambda h: h - h.mean(-1, keepdim=True),
        "orthogonal_mean",
        "looks at its mean",
    ),
    "largest": (
        lambda h: h / h.norm(float("inf"), dim=-1, keepdim=True),
        "permutation",
        "one by one",
    ),
    "sum of fourth powers": (
        lambda h: h / h.pow(4).mean(-1, keepdim=True),
        "permutation",
        "aten.pow",
    ),
}


@pytest.mark.parametrize("name", NORMS)
def test_norms(name):
    norm, kind, word = NORMS[name]
    torch.manual_seed(0)
    net = Normed(norm).double()
    spec = infer_spec(net, ROWS, kinds="all")
    assert largest_error(net, spec, ROWS) < 1e-9
    assert spec.groups["a"].kind == kind
    assert word in spec.limits["a"]


def test_a_norm_over_a_part_of_the_units_is_no_norm_of_them():
    def halves(h: Tensor) -> Tensor:
        return rms(h.unflatten(-1, (2, 3))).flatten(-2)

    torch.manual_seed(0)
    net = Normed(halves).double()
    spec = infer_spec(net, ROWS, kinds="all")
    assert largest_error(net, spec, ROWS) < 1e-9
    # Each half is a head: a rotation of its own.
    sizes = {g.size for g in spec.groups.values() if g.kind == "orthogonal"}
    assert sizes == {3}
