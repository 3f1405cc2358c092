"""Which kinds are inferred, written by hand from reading each model, and the traps in which nothing larger is true."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers.recovery import assert_planted_is_recovered
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_rebasin import check_equivalence, infer_spec
from lightning_rebasin.symmetry import PermutationSpec, Transform

WIDTH, HEADS = 12, 2


class RMSNorm(nn.Module):
    def __init__(self, width: int = WIDTH, *, gain: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5) if gain else None

    def forward(self, x: Tensor) -> Tensor:
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        return x if self.weight is None else x * self.weight


def turned(x: Tensor, *, neighbours: bool) -> Tensor:
    """Rotary positions in one of the two layouts."""
    time, half = x.shape[-2], x.shape[-1] // 2
    angles = torch.arange(time)[:, None] * 10.0 ** -torch.arange(half)
    cos, sin = angles.cos(), angles.sin()
    if neighbours:
        a, b = x[..., ::2], x[..., 1::2]
        pairs = (a * cos - b * sin, b * cos + a * sin)
        return torch.stack(pairs, -1).flatten(-2)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class Transformer(nn.Module):
    """One block whose traps can be switched on."""

    def __init__(
        self,
        norm: Callable[[], nn.Module] = lambda: nn.LayerNorm(WIDTH),
        *,
        trap: str = "",
        rotary: str = "",
        heads: int = HEADS,
        tied: bool = False,
    ) -> None:
        super().__init__()
        self.trap, self.rotary, self.heads = trap, rotary, heads
        self.embed = nn.Embedding(7, WIDTH)
        self.first, self.second, self.last = norm(), norm(), norm()
        self.q, self.k, self.v, self.o = (
            nn.Linear(WIDTH, WIDTH) for _ in range(4)
        )
        self.up, self.down = nn.Linear(WIDTH, 8), nn.Linear(8, WIDTH)
        self.head = nn.Linear(WIDTH, 7, bias=trap != "no bias")
        if tied:
            self.head.weight = self.embed.weight
        self.of_query: nn.Module = nn.Identity()
        if "q/k norm" in trap:
            self.of_query = RMSNorm(WIDTH // heads, gain=trap == "q/k norm")
        for p in self.parameters():
            nn.init.normal_(p, 0.3 if p.dim() == 1 else 0.0, 0.5)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        if self.trap == "pointwise":
            x = torch.tanh(x)
        h = self.first(x)
        if self.trap == "norm re-enters":
            x = h
        shape = (*ids.shape, self.heads, -1)
        q, k, v = (
            m(h).view(shape).transpose(1, 2) for m in (self.q, self.k, self.v)
        )
        q, k = self.of_query(q), self.of_query(k)
        if self.rotary:
            q, k = (
                turned(t, neighbours=self.rotary == "neighbours")
                for t in (q, k)
            )
        a = F.scaled_dot_product_attention(q, k, v)
        x = x + self.o(a.transpose(1, 2).flatten(-2))
        if self.trap == "post-LN":
            x = self.second(x)
            return self.head(self.last(x + self.down(F.gelu(self.up(x)))))
        x = x + self.down(F.gelu(self.up(self.second(x))))
        return self.head(self.last(x))


IDS = torch.tensor([[0, 3, 1, 5], [6, 2, 2, 4]])


def spec_of(net: nn.Module, *inputs: Tensor) -> PermutationSpec:
    """The spec, with a random element of everything proved in float64."""
    spec = infer_spec(net, *(inputs or (IDS,)), kinds="all")
    plain = infer_spec(net, *(inputs or (IDS,)))
    for name, group in plain.groups.items():
        assert spec.groups[name].members == group.members, "a group shrank"
    transform = Transform.random(spec, torch.Generator().manual_seed(9))
    assert check_equivalence(net, transform, *(inputs or (IDS,))) < 1e-9
    return spec


def kind_of(spec: PermutationSpec, tensor: str, dim: int) -> str:
    """The kind with which a dimension of a tensor moves."""
    found = []
    for component in spec.maps[tensor].components:
        dims = {spec.maps[tensor].site_dims[s] for s in component.sites}
        if dims == {dim}:
            found.append(spec.groups[component.group].kind)
    return found[0] if len(found) == 1 else "+".join(sorted(found))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_a_stream_behind_layer_norm_is_rotated_around_the_mean() -> None:
    spec = spec_of(Transformer())
    assert kind_of(spec, "embed.weight", 1) == "orthogonal_mean"
    assert kind_of(spec, "q.weight", 0) == "linear"
    assert kind_of(spec, "v.weight", 0) == "linear"
    assert kind_of(spec, "up.weight", 0) == "permutation"
    assert {fold.gain for fold in spec.folds} == {
        "first.weight",
        "second.weight",
        "last.weight",
    }
    assert "aten.gelu" in spec.explain("up.weight")


def test_a_stream_behind_rms_norm_is_rotated_freely() -> None:
    spec = spec_of(Transformer(RMSNorm))
    assert kind_of(spec, "embed.weight", 1) == "orthogonal"
    assert not spec.centres


def test_a_reader_without_bias_keeps_the_shift_and_nothing_is_centred() -> (
    None
):
    spec = spec_of(Transformer(trap="no bias"))
    assert kind_of(spec, "embed.weight", 1) == "orthogonal_mean"
    assert not spec.centres


@pytest.mark.parametrize("layout", ["halves", "neighbours"])
def test_rotary_positions_leave_a_complex_factor_per_pair(layout: str) -> None:
    spec = spec_of(Transformer(RMSNorm, rotary=layout))
    assert kind_of(spec, "q.weight", 0) == "plane"
    assert kind_of(spec, "k.bias", 0) == "plane"
    assert kind_of(spec, "v.weight", 0) == "linear"


TRAPS = {
    "post-LN": "permutation",
    "pointwise": "permutation",
    "norm re-enters": "permutation",
}


@pytest.mark.parametrize("trap", TRAPS)
def test_traps_of_the_stream(trap: str) -> None:
    spec = spec_of(Transformer(trap=trap))
    kind = kind_of(spec, "q.weight", 1)
    assert kind not in ("orthogonal", "orthogonal_mean", "linear")
    assert spec.limits["embed"]


def test_a_tied_head_stops_the_rotation_and_says_why() -> None:
    spec = spec_of(Transformer(RMSNorm, tied=True))
    assert kind_of(spec, "embed.weight", 1) in ("permutation", "sign", "scale")
    assert "'last.weight' cannot be folded into 'embed.weight'" in str(spec)


def test_norms_of_queries_and_keys() -> None:
    """A gain of q and k that all heads share pins the pairs; without one a rotation is left."""
    bare = spec_of(Transformer(trap="bare q/k norm"))
    assert kind_of(bare, "q.weight", 0) == "orthogonal"
    gained = spec_of(Transformer(trap="q/k norm"))
    assert "orthogonal" not in kind_of(gained, "q.weight", 0)
    assert "linear" not in kind_of(gained, "q.weight", 0)


CHAINS = {
    "relu": (nn.ReLU(), "scale"),
    "leaky": (nn.LeakyReLU(0.1), "scale"),
    "tanh": (nn.Tanh(), "sign"),
    "sigmoid": (nn.Sigmoid(), "permutation"),
    "none": (nn.Identity(), "linear"),
}


@pytest.mark.parametrize("name", CHAINS)
def test_activations(name: str) -> None:
    function, kind = CHAINS[name]
    net = nn.Sequential(nn.Linear(3, 5), function, nn.Linear(5, 2))
    spec = spec_of(net, torch.randn(6, 3))
    assert kind_of(spec, "0.weight", 0) == kind


def test_batch_norm_leaves_the_scale_of_its_affine_part_only() -> None:
    net = nn.Sequential(
        nn.Linear(3, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2)
    )
    spec = spec_of(net, torch.randn(6, 3))
    assert kind_of(spec, "1.weight", 0) == "scale"
    # ε stands beside the variance.
    assert kind_of(spec, "0.weight", 0) == "permutation"


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(3, 5), nn.Linear(3, 5)
        self.down = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


def test_the_linear_side_of_a_gated_unit_has_any_number() -> None:
    spec = spec_of(Gated(), torch.randn(6, 3))
    assert kind_of(spec, "up.weight", 0) == "linear"
    assert kind_of(spec, "gate.weight", 0) == "permutation"


class LoRA(nn.Module):
    """The second factor begins at 0, so that only noise can prove anything."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(4, 3)
        self.a = nn.Parameter(torch.randn(2, 4))
        self.b = nn.Parameter(torch.zeros(3, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + (x @ self.a.T) @ self.b.T


def test_low_rank_factors_have_invertible_maps_between_them() -> None:
    spec = spec_of(LoRA(), torch.randn(6, 4))
    assert kind_of(spec, "a", 0) == "linear"


class SquaredReLU(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(3, 5), nn.Linear(5, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self[1](F.relu(self[0](x)).square())


def test_readers_of_squared_units_divide_twice() -> None:
    spec = spec_of(SquaredReLU(), torch.randn(6, 3))
    (component, *_) = spec.maps["1.weight"].components
    assert spec.groups[component.group].kind == "scale"
    assert component.power == -2


def test_only_what_was_asked_for() -> None:
    net = Transformer()
    spec = infer_spec(net, IDS, kinds=["orthogonal"])
    kinds = {group.kind for group in spec.groups.values()}
    # Queries and keys allow any invertible map, so a rotation as well; the stream would need the mean to stay.
    assert kinds == {"permutation", "orthogonal"}
    assert {g.kind for g in infer_spec(net, IDS).groups.values()} == {
        "permutation"
    }


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("norm", [RMSNorm, lambda: nn.LayerNorm(WIDTH)])
def test_the_canonical_gauge_is_the_same_function_and_stays(
    norm: Callable[[], nn.Module], tied: bool
) -> None:
    net = Transformer(norm, tied=tied).double()
    spec = spec_of(net)
    before = net(IDS)
    canonical = spec.canonicalise(net.state_dict())
    net.load_state_dict(canonical)
    torch.testing.assert_close(net(IDS), before, rtol=1e-9, atol=1e-9)
    again = spec.canonicalise(canonical)
    for name, tensor in canonical.items():
        torch.testing.assert_close(again[name], tensor, rtol=1e-6, atol=1e-8)


def test_files_keep_kinds_folds_and_limits() -> None:
    spec = spec_of(Transformer(RMSNorm, rotary="halves"))
    again = PermutationSpec.from_dict(spec.to_dict())
    assert again == spec
    assert again.folds == spec.folds
    assert dict(again.limits) == dict(spec.limits)


@pytest.mark.parametrize(
    "net",
    [
        Transformer(),
        Transformer(RMSNorm),
        Transformer(RMSNorm, rotary="halves"),
    ],
    ids=["layer norm", "rms norm", "rotary"],
)
def test_a_planted_element_is_recovered_without_data(net: nn.Module) -> None:
    net = net.double()
    assert_planted_is_recovered(net, spec_of(net))
