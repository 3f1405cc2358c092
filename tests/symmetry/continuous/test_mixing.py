"""Which groups may be mixed by matrices: pre-LN streams, heads, low-rank pairs, and the traps around them.

Expectations come from reading the networks, and every network is run under random elements in float64.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers.proofs import largest_error
from torch import Tensor, nn

from lightning_rebasin import infer_spec

WIDTH, HEADS, VOCABULARY = 8, 2, 11
TOKENS = torch.arange(10).reshape(2, 5) % VOCABULARY


class RMSNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.rand(WIDTH) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        size = x.square().mean(-1, keepdim=True)
        return x * (size + 1e-6).rsqrt() * self.gain


class Stream(nn.Module):
    """Embedding, one attention, one MLP, head; how the parts are joined is the argument.

    Args:
        norm: Makes a norm.
        joined: ``joined(net, x)`` is the stream after one block.
    """

    def __init__(
        self,
        norm: Callable[[], nn.Module],
        joined: Callable[[Stream, Tensor], Tensor],
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.norm1, self.norm2, self.norm3 = norm(), norm(), norm()
        self.query = nn.Linear(WIDTH, WIDTH)
        self.key = nn.Linear(WIDTH, WIDTH)
        self.value = nn.Linear(WIDTH, WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.up = nn.Linear(WIDTH, 12)
        self.down = nn.Linear(12, WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY)
        self.joined = joined

    def attention(self, x: Tensor) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        mixed = scores.softmax(-1) @ v
        return self.out(mixed.transpose(1, 2).flatten(-2))

    def mlp(self, x: Tensor) -> Tensor:
        return self.down(nn.functional.gelu(self.up(x)))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.joined(self, self.embed(tokens))
        return self.head(self.norm3(x))


def pre_norm(net: Stream, x: Tensor) -> Tensor:
    x = x + net.attention(net.norm1(x))
    return x + net.mlp(net.norm2(x))


def post_norm(net: Stream, x: Tensor) -> Tensor:
    x = net.norm1(x + net.attention(x))
    return net.norm2(x + net.mlp(x))


def norm_enters_the_stream(net: Stream, x: Tensor) -> Tensor:
    x = net.norm1(x)
    x = x + net.attention(net.norm2(x))
    return x + net.mlp(x)


def pointwise(net: Stream, x: Tensor) -> Tensor:
    return torch.tanh(pre_norm(net, x))


def gain_is_used_again(net: Stream, x: Tensor) -> Tensor:
    return pre_norm(net, x) * net.norm1.weight


def sliced(net: Stream, x: Tensor) -> Tensor:
    x = pre_norm(net, x)
    half = WIDTH // 2
    return torch.cat([x[..., :half], 2 * x[..., half:]], -1)


def made(
    joined: Callable[[Stream, Tensor], Tensor],
    norm: Callable[[], nn.Module] = lambda: nn.LayerNorm(WIDTH),
) -> Stream:
    torch.manual_seed(0)
    net = Stream(norm, joined).double().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net


def stream_kind(net: nn.Module) -> str | None:
    """The kind of the group that moves the embedding's columns; the function is proved to stay."""
    spec = infer_spec(net, TOKENS, kinds="all")
    # Elements act on weights in canonical gauge, which compute the same function.
    with torch.no_grad():
        before = net(TOKENS)
    net.load_state_dict(spec.canonicalise(net.state_dict()))
    with torch.no_grad():
        torch.testing.assert_close(net(TOKENS), before)
    assert largest_error(net, spec, TOKENS) < 1e-9
    plain = infer_spec(net, TOKENS)
    assert all(g.kind == "permutation" for g in plain.groups.values())
    for component in spec.maps["embed.weight"].components:
        group = spec.groups[component.group]
        if group.size == WIDTH:
            return group.kind
    return None


def test_a_layer_norm_stream_turns_about_its_mean():
    assert stream_kind(made(pre_norm)) == "orthogonal_mean"


def test_an_rms_norm_stream_turns_freely():
    assert stream_kind(made(pre_norm, RMSNorm)) == "orthogonal"


def test_a_norm_without_gain_needs_no_fold():
    net = made(pre_norm, lambda: nn.LayerNorm(WIDTH, elementwise_affine=False))
    assert stream_kind(net) == "orthogonal_mean"
    assert not infer_spec(net, TOKENS, kinds="all").folds


@pytest.mark.parametrize(
    "trap",
    [post_norm, norm_enters_the_stream, pointwise, gain_is_used_again, sliced],
)
def test_traps_end_the_rotation_with_a_reason(trap):
    net = made(trap)
    kind = stream_kind(net)
    assert kind not in {"orthogonal", "orthogonal_mean", "linear"}


def test_heads_have_linear_maps_of_their_own():
    spec = infer_spec(made(pre_norm), TOKENS, kinds="all")
    linear = [g for g in spec.groups.values() if g.kind == "linear"]
    # One for queries and keys, one for values and outputs; one element for each head.
    assert [(g.size, g.instances) for g in linear] == [(4, 2), (4, 2)]
    moved = [set(spec.tensors_of(g.id)) for g in linear]
    queries = {
        f"{n}.{t}" for n in ("query", "key") for t in ("weight", "bias")
    }
    values = {"value.weight", "value.bias", "out.weight"}
    assert sorted(moved, key=len) == sorted([values, queries], key=len)


def test_two_linear_maps_in_a_row_have_any_map_between_them():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 3, bias=False), nn.Linear(3, 5)).double()
    rows = torch.randn(4, 6, dtype=torch.float64)
    spec = infer_spec(net, rows, kinds="all")
    assert [(g.kind, g.size) for g in spec.groups.values()] == [("linear", 3)]
    assert largest_error(net, spec, rows) < 1e-9


def test_a_tied_head_keeps_the_gain_of_the_last_norm():
    """The embedding's columns are read behind a gain, so that only what commutes with the gain is left."""
    net = made(pre_norm)
    net.head.weight = net.embed.weight
    assert stream_kind(net) not in {"orthogonal", "orthogonal_mean"}


def test_only_the_kinds_that_are_wanted_are_found():
    net = made(pre_norm)
    spec = infer_spec(net, TOKENS, kinds=["linear"])
    found = {g.kind for g in spec.groups.values()}
    assert found == {"permutation", "linear"}
