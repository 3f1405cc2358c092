"""What looks at lengths and means: which rotations are left, and what is no norm at all."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from helpers.attention import kinds_along
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


class QueryKeyNorm(nn.Module):
    """Attention whose queries and keys are normalised: in each head, or all heads together."""

    def __init__(self, make: Callable[[int], nn.Module], *, whole: bool):
        super().__init__()
        self.whole = whole
        self.first = nn.Linear(5, 12)
        self.q, self.k, self.v = (nn.Linear(12, 8) for _ in range(3))
        self.of_q, self.of_k = (make(8 if whole else 4) for _ in range(2))
        self.o, self.last = nn.Linear(8, 12), nn.Linear(12, 3)
        for parameter in self.parameters():
            if parameter.dim() == 1:
                nn.init.normal_(parameter, 0.5, 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x))
        q, k, v = self.q(x), self.k(x), self.v(x)
        if self.whole:
            q, k = self.of_q(q), self.of_k(k)
        q, k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in (q, k, v))
        if not self.whole:
            q, k = self.of_q(q), self.of_k(k)
        mixed = F.scaled_dot_product_attention(q, k, v)
        mixed = mixed.transpose(1, 2).flatten(-2)
        return self.last(torch.tanh(self.o(mixed)))


QUERY_KEY: dict[str, tuple[Callable[[int], nn.Module], str, str]] = {
    # A rotation in each head keeps the length of a head, and of all heads together.
    "rms": (
        lambda n: nn.RMSNorm(n, elementwise_affine=False),
        "orthogonal",
        "looks at its length",
    ),
    "layer": (
        lambda n: nn.LayerNorm(n, elementwise_affine=False),
        "orthogonal_mean",
        "looks at its mean",
    ),
    # What stands behind a gain is no weight but the other side of the attention: −1 alone goes through.
    "rms with gain": (nn.RMSNorm, "sign", "cannot be folded"),
    # A shift behind the gain does not even let −1 through without its own.
    "layer with gain and shift": (
        nn.LayerNorm,
        "permutation",
        "cannot be folded",
    ),
}


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("name", QUERY_KEY)
def test_norms_of_queries_and_keys(name, whole):
    make, kind, word = QUERY_KEY[name]
    torch.manual_seed(0)
    net = QueryKeyNorm(make, whole=whole).double()
    rows = torch.randn(3, 6, 5, dtype=torch.float64)
    spec = infer_spec(net, rows, kinds="all")
    assert largest_error(net, spec, rows) < 1e-9
    found = {kind for kind, _ in kinds_along(spec, "q.weight", 0)}
    # The order of heads, and of units behind a gain, is a permutation beside.
    assert found - {"permutation"} == {kind} - {"permutation"}
    assert any(word in why for why in spec.limits.values())
    # The analysis knew by itself: the gate had nothing to refuse.
    assert "random elements" not in str(spec)
