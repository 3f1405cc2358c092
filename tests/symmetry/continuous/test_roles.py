"""Packed projections: each copy of the units in one weight is a query or a key, and acts as such."""

from __future__ import annotations

import pytest
import torch
from helpers.attention import (
    Attention,
    kinds_along,
    normed,
    proved_spec,
)
from helpers.recovery import assert_planted_is_recovered
from torch import Tensor, nn

from lightning_rebasin import check_equivalence
from lightning_rebasin.symmetry import AxisMap, Component, Transform
from lightning_rebasin.symmetry.continuous.roles import (
    NOTHING,
    beside,
    pairs,
    roles_of_weight,
)

ROWS = torch.randn(
    3, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
)


class Torch(nn.Module):
    """PyTorch's own attention."""

    def __init__(self, *, bias: bool = True, weights: bool = False) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)
        self.inner = nn.MultiheadAttention(8, 2, batch_first=True, bias=bias)
        self.weights = weights
        for parameter in self.inner.parameters():
            if parameter.dim() == 1:
                nn.init.normal_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x))
        mixed, _ = self.inner(x, x, x, need_weights=self.weights)
        return self.last(torch.tanh(mixed))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("weights", [True, False])
def test_torch_attention_has_linear_maps_inside_its_heads(bias, weights):
    net = Torch(bias=bias, weights=weights)
    spec = proved_spec(net, ROWS)
    # Queries are written, keys are read, values are written.
    assert kinds_along(spec, "inner.in_proj_weight", 0) == {
        ("linear", 1),
        ("linear", -1),
    }
    groups = [g for g in spec.groups.values() if g.kind == "linear"]
    inside = [g for g in groups if g.parent is not None]
    assert [(g.instances, g.size) for g in inside] == [(2, 4), (2, 4)]
    if bias:
        assert kinds_along(spec, "inner.in_proj_bias", 0) == {
            ("linear", 1),
            ("linear", -1),
        }


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("norm_first", [True, False])
def test_the_encoder_layer_of_torch(norm_first, training):
    layer = nn.TransformerEncoderLayer(
        8, 2, 16, dropout=0.0, norm_first=norm_first, batch_first=True
    )
    net = nn.Sequential(
        nn.Linear(6, 8), layer, nn.LayerNorm(8), nn.Linear(8, 4)
    ).double()
    net.train(training)
    spec = proved_spec(net, ROWS)
    assert kinds_along(spec, "1.self_attn.in_proj_weight", 0) == {
        ("linear", 1),
        ("linear", -1),
    }
    stream = {kind for kind, _ in kinds_along(spec, "0.weight", 0)}
    assert stream == ({"orthogonal_mean"} if norm_first else {"permutation"})


class Conv1D(nn.Module):
    """A linear layer as GPT-2 keeps it: the weight is turned."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs) / 3)
        self.bias = nn.Parameter(torch.randn(outputs) / 3)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        return torch.addmm(self.bias, flat, self.weight).view(
            *x.shape[:-1], -1
        )


@pytest.mark.parametrize("packed", ["parts", "heads"])
@pytest.mark.parametrize("turned", [True, False])
def test_packed_projections(packed, turned):
    net = Attention(packed=packed)
    if turned:
        net.qkv = Conv1D(12, 24)
    spec = proved_spec(net)
    dim = 1 if turned else 0
    assert kinds_along(spec, "qkv.weight", dim) == {
        ("linear", 1),
        ("linear", -1),
    }


def test_weights_that_are_packed_before_they_are_used():
    class Joined(nn.Module):
        """The projections are joined on the way, as in BEiT."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = Attention(packed="parts")
            self.a, self.b, self.c = (
                nn.Parameter(torch.randn(8, 12) / 3) for _ in range(3)
            )
            del self.inner.qkv
            self.inner.qkv = self.project  # type: ignore[assignment]

        def project(self, x: Tensor) -> Tensor:
            weight = torch.cat([self.a, self.b, self.c])
            return nn.functional.linear(x, weight)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

    spec = proved_spec(Joined())
    assert kinds_along(spec, "a", 0) == {("linear", 1)}
    assert kinds_along(spec, "b", 0) == {("linear", -1)}
    assert kinds_along(spec, "c", 0) == {("linear", 1)}


def test_a_packed_norm_of_queries_and_keys_leaves_rotations():
    spec = proved_spec(Attention(normed, packed="parts"))
    kinds = {kind for kind, _ in kinds_along(spec, "qkv.weight", 0)}
    assert kinds == {"orthogonal", "linear"}


def test_planted_maps_of_packed_heads_are_recovered_without_data():
    net = Torch().double()
    spec = proved_spec(net, ROWS)
    planted = Transform.random(spec, torch.Generator().manual_seed(4))
    assert check_equivalence(net, planted, ROWS) < 1e-9
    assert_planted_is_recovered(net, spec)


def test_roles_of_a_weight_stand_where_its_copies_are():
    index = torch.tensor([[0, 2], [1, 3]])
    packed = AxisMap("w", ((6,), (5,)), (Component("h", (0,), index),))
    roles = roles_of_weight(packed, "h", lambda copy: 10 + copy)
    assert isinstance(roles, Tensor)
    assert roles.tolist() == [[10], [10], [11], [11], [NOTHING], [NOTHING]]
    once = AxisMap("w", ((2,), (5,)), (Component("h", (0,), index[:, :1]),))
    assert roles_of_weight(once, "h", lambda copy: copy) == 0


def test_pairs_are_met_where_both_stand():
    first = torch.tensor([[1], [2], [NOTHING]])
    second = torch.tensor([[3], [4], [5]])
    assert list(pairs(first, second)) == [(1, 3), (2, 4)]
    assert list(pairs(first, 7)) == [(1, 7), (2, 7)]
    assert list(pairs(8, 7)) == [(8, 7)]
    with pytest.raises((RuntimeError, ValueError)):
        list(pairs(first, second[:2]))


def test_a_concatenation_keeps_roles_apart_and_leaves_room_for_others():
    joined = beside([(4, (3, 2)), (NOTHING, (3, 1)), (5, (3, 2))], 1)
    assert isinstance(joined, Tensor)
    assert joined.tolist() == [[4, 4, NOTHING, 5, 5]]
    assert beside([(4, (3, 2)), (4, (3, 2))], 1) == 4
