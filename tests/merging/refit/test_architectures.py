"""Refit as a whole on small networks of every kind."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from helpers.models import BatchNormCNN, mlp, randomise
from torch import Tensor, nn

from lightning_rebasin import refit
from lightning_rebasin.merging import Refit


class Residual(nn.Module):
    """A branch behind a norm, added to a stream."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.a, self.n = nn.Linear(6, 12), norm
        self.f, self.g = nn.Linear(12, 24), nn.Linear(24, 12)
        self.o = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return self.o(h + self.g(F.gelu(self.f(self.n(h)))))


class GroupNormCNN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c, self.n = nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(4, 8)
        self.d, self.o = nn.Conv2d(8, 8, 3, stride=2), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.d(F.relu(self.n(self.c(x)))))
        return self.o(h.mean((2, 3)))


class FusedAttention(nn.Module):
    """Queries, keys and values come from one product."""

    def __init__(self, *, fused_kernel: bool) -> None:
        super().__init__()
        self.e, self.qkv = nn.Linear(5, 8), nn.Linear(8, 24)
        self.p, self.o = nn.Linear(8, 8), nn.Linear(8, 3)
        self.fused_kernel = fused_kernel

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.fused_kernel:
            return F.scaled_dot_product_attention(q, k, v)
        return (q @ k.transpose(-1, -2) / 2).softmax(-1) @ v

    def forward(self, x: Tensor) -> Tensor:
        h = self.e(x)
        batch, length, _ = h.shape
        split = self.qkv(h).view(batch, length, 3, 2, 4)
        q, k, v = split.permute(2, 0, 3, 1, 4)
        mixed = self.attend(q, k, v).transpose(1, 2)
        return self.o(h + self.p(mixed.reshape(batch, length, 8)))


class TorchAttention(nn.Module):
    def __init__(self, *, batch_first: bool) -> None:
        super().__init__()
        self.e, self.o = nn.Linear(5, 8), nn.Linear(8, 3)
        self.m = nn.MultiheadAttention(8, 2, batch_first=batch_first)
        self.batch_first = batch_first

    def forward(self, x: Tensor) -> Tensor:
        h = self.e(x if self.batch_first else x.transpose(0, 1))
        h = h + self.m(h, h, h, need_weights=False)[0]
        return self.o(h if self.batch_first else h.transpose(0, 1))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.i, self.a, self.o = (
            nn.Linear(5, 8),
            nn.Linear(8, 8),
            nn.Linear(8, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.a(torch.relu(self.i(x))))
        return self.o(torch.relu(self.a(h)))


class LanguageModel(nn.Module):
    def __init__(self, *, tied: bool) -> None:
        super().__init__()
        self.e, self.f = nn.Embedding(11, 8), nn.Linear(8, 8)
        self.h = nn.Linear(8, 11, bias=False)
        if tied:
            self.h.weight = self.e.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.h(torch.tanh(self.f(self.e(tokens))))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.l, self.o = nn.LSTM(5, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.l(x)[0])


class LayerScale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.f, self.o = (
            nn.Linear(5, 8),
            nn.Linear(8, 8),
            nn.Linear(8, 3),
        )
        self.gain = nn.Parameter(torch.full((8,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return self.o(h + self.gain * self.f(F.gelu(h)))


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def tokens() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(11, (256, 6), generator=generator)


Build = Callable[[], nn.Module]
NETWORKS: dict[str, tuple[Build, Callable[[], Tensor]]] = {
    "mlp": (lambda: mlp(5, 8, 3), lambda: normal(256, 5)),
    "batch norm": (BatchNormCNN, lambda: normal(128, 3, 8, 8)),
    "layer norm": (
        lambda: Residual(nn.LayerNorm(12)),
        lambda: normal(256, 6),
    ),
    "rms norm": (lambda: Residual(nn.RMSNorm(12)), lambda: normal(256, 6)),
    "group norm": (GroupNormCNN, lambda: normal(128, 3, 8, 8)),
    "fused attention": (
        lambda: FusedAttention(fused_kernel=True),
        lambda: normal(128, 6, 5),
    ),
    "written attention": (
        lambda: FusedAttention(fused_kernel=False),
        lambda: normal(128, 6, 5),
    ),
    "torch attention": (
        lambda: TorchAttention(batch_first=True),
        lambda: normal(128, 6, 5),
    ),
    "torch attention, sequence first": (
        lambda: TorchAttention(batch_first=False),
        lambda: normal(128, 6, 5),
    ),
    "encoder layer": (
        lambda: nn.Sequential(
            nn.Linear(5, 8),
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
        ),
        lambda: normal(128, 6, 5),
    ),
    "tied": (Tied, lambda: normal(256, 5)),
    "tied embedding": (lambda: LanguageModel(tied=True), tokens),
    "embedding": (lambda: LanguageModel(tied=False), tokens),
    "lstm": (Recurrent, lambda: normal(128, 6, 5)),
    "layer scale": (LayerScale, lambda: normal(256, 5)),
}


def built(name: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return NETWORKS[name][0]().to(dtype).eval()


def end(net: nn.Module, seed: int) -> dict[str, Tensor]:
    # norms start from ones, so that the noise is that of this end alone
    before = {k: v.clone() for k, v in net.state_dict().items()}
    found = {
        k: v.clone() for k, v in randomise(net, seed).state_dict().items()
    }
    net.load_state_dict(before)
    return found


def merge(
    net: nn.Module, states: list[dict[str, Tensor]], x: Tensor
) -> Refit[nn.Module]:
    return refit(net, states, list(x.split(64)))


def check(found: Refit[nn.Module]) -> None:
    """Finite, and no worse than the rivals by its own score."""
    state = found.module.state_dict()
    assert all(bool(tensor.isfinite().all()) for tensor in state.values())
    assert found.scores[found.method] == min(found.scores.values())


@pytest.mark.parametrize("name", NETWORKS)
def test_two_identical_ends_give_the_end_itself(name: str) -> None:
    net, x = built(name), NETWORKS[name][1]()
    state = end(net, 1)
    found = merge(net, [state, state], x)
    net.load_state_dict(state)
    with torch.no_grad():
        torch.testing.assert_close(
            found.module(x), net(x), atol=1e-5, rtol=1e-5
        )
    # the average is the end, too: equals decide by rounding errors
    assert found.scores["refit"] < 1e-9


@pytest.mark.parametrize("name", NETWORKS)
def test_of_different_ends_the_refit_is_nearer_than_the_rivals(
    name: str,
) -> None:
    net = built(name)
    found = merge(net, [end(net, 1), end(net, 2)], NETWORKS[name][1]())
    check(found)
    assert found.method == "refit"
    rivals = [s for method, s in found.scores.items() if method != "refit"]
    assert found.scores["refit"] < 0.9 * min(rivals)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_parameter_is_fitted_or_left_with_a_reason(name: str) -> None:
    net = built(name)
    found = merge(net, [end(net, 1), end(net, 2)], NETWORKS[name][1]())
    fitted = {fit.layer.rpartition(".")[0] for fit in found.layers}
    fitted |= {fit.absorbed for fit in found.layers}
    left = {layer.name: layer.reason for layer in found.left}
    for weight, _ in net.named_parameters():
        owner = weight.rpartition(".")[0]
        assert owner in fitted or weight in left, weight
    assert all(left.values())


LEFT = {
    "tied": {"a.weight": "used 2 times in one pass"},
    "tied embedding": {"e.weight": "used 2 times in one pass"},
    "embedding": {"e.weight": "the average of the tables"},
    "lstm": {
        "l.weight_ih_l0": "recurrent cell",
        "l.weight_hh_l0": "recurrent cell",
    },
    "layer scale": {"gain": "fitted through this gain"},
}


@pytest.mark.parametrize("name", LEFT)
def test_what_cannot_be_solved_is_left_with_its_reason(name: str) -> None:
    net = built(name)
    found = merge(net, [end(net, 1), end(net, 2)], NETWORKS[name][1]())
    reasons = {layer.name: layer.reason for layer in found.left}
    for weight, words in LEFT[name].items():
        assert words in reasons[weight]
    assert not set(reasons) & {fit.layer for fit in found.layers}


def test_a_gain_keeps_its_average_and_an_embedding_too() -> None:
    for name, weight in (("layer scale", "gain"), ("embedding", "e.weight")):
        net = built(name)
        states = [end(net, 1), end(net, 2)]
        found = merge(net, states, NETWORKS[name][1]())
        expected = (states[0][weight] + states[1][weight]) / 2
        assert torch.equal(found.module.state_dict()[weight], expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "name", ["mlp", "batch norm", "layer norm", "torch attention", "tied"]
)
def test_narrow_types_are_kept_and_as_good_as_rounding_allows(
    name: str, dtype: torch.dtype
) -> None:
    net, x = built(name), NETWORKS[name][1]()
    states = [end(net, 1), end(net, 2)]
    wide = merge(net, states, x)
    narrow = []
    for state in states:
        floats = {k: v for k, v in state.items() if v.is_floating_point()}
        narrow.append({**state, **{k: v.to(dtype) for k, v in floats.items()}})
    found = merge(built(name, dtype), narrow, x)
    check(found)
    kinds = {t.dtype for t in found.module.parameters()}
    assert kinds == {dtype}
    assert found.scores["refit"] == pytest.approx(
        wide.scores["refit"], rel=0.05, abs=2e-3
    )


@pytest.mark.parametrize("name", ["mlp", "batch norm", "layer norm"])
def test_constant_inputs_are_finite_and_met_exactly(name: str) -> None:
    """The one input that there is gets the mean of the ends' outputs."""
    net = built(name)
    x = torch.ones_like(NETWORKS[name][1]())
    states = [end(net, 1), end(net, 2)]
    found = merge(net, states, x)
    check(found)
    with torch.no_grad():
        total = torch.zeros(())
        for state in states:
            net.load_state_dict(state)
            total = total + net(x[:1]) / 2
        torch.testing.assert_close(
            found.module(x[:1]), total, atol=1e-4, rtol=1e-4
        )


@pytest.mark.parametrize("end_is_dead", [[0], [0, 1]])
def test_dead_channels_stay_finite(end_is_dead: list[int]) -> None:
    """A channel that is zero in one end, or in both."""
    net, x = built("mlp"), normal(256, 5)
    states = [end(net, 1), end(net, 2)]
    for i in end_is_dead:
        states[i]["0.weight"][3] = 0
        states[i]["0.bias"][3] = -1
    found = merge(net, states, x)
    check(found)
    assert found.method == "refit"
    weight = found.module.state_dict()["0.weight"][3]
    assert bool((weight.abs() < 1e-6).all()) == (len(end_is_dead) == 2)


@pytest.mark.parametrize("name", ["batch norm", "layer norm", "wide"])
def test_fewer_samples_than_units_do_no_harm(name: str) -> None:
    """20 samples, and 64 units behind one another."""
    if name == "wide":
        net, x = mlp(5, 64, 64, 3), normal(20, 5)
    else:
        net, x = built(name), NETWORKS[name][1]()[:20]
    found = merge(net, [end(net, 1), end(net, 2)], x)
    check(found)
    assert sum(found.samples) == 20


def test_an_instance_norm_is_left_and_named() -> None:
    """Its gain is repeated for each sample before it is used."""
    norm = nn.InstanceNorm2d(4, affine=True)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.ReLU()).eval()
    found = merge(net, [end(net, 1), end(net, 2)], normal(64, 3, 6, 6))
    check(found)
    names = [layer.name for layer in found.left]
    assert names == ["1.weight", "1.bias"]
