"""Traps: networks in which a larger kind looks possible and is not, and the operation that is named as the reason.

The gate would refuse what the analysis proposes wrongly, so the kinds alone do not show that the analysis sees the
trap: its reason does.  That the trap is real is shown by claiming the larger kind by hand: it changes the function.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from helpers.streams import (
    HIDDEN,
    IDS,
    WIDTH,
    WORDS,
    Norm,
    Stream,
    kind_of,
    proved,
    randomised,
)
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from lightning_rebasin import check_equivalence, infer_spec
from lightning_rebasin.errors import EquivalenceError, UntracedWarning
from lightning_rebasin.symmetry import Transform
from lightning_rebasin.symmetry.actions.action import action_of


def claim_fails(net: nn.Module, group: str, kind: str, *x: Tensor) -> bool:
    """Whether a kind that is claimed by hand for a group of permutations changes the function."""
    plain = infer_spec(net, *x)
    larger = replace(plain.groups[group], kind=kind)
    claimed = replace(plain, groups={**plain.groups, group: larger})
    element = action_of(larger).far(larger)
    try:
        check_equivalence(net, Transform.of(claimed, {group: element}), *x)
    except EquivalenceError:
        return True
    return False


# ---- the stream of a residual network


class PostNorm(Stream):
    def forward(self, ids: Tensor) -> Tensor:
        x = self.first(self.embed(ids))
        return self.read(x + self.block(x))


class NormReenters(Stream):
    """ResiDual and others add what a norm gives to the stream."""

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        h = self.first(x)
        return self.read(x + h + self.block(h))


class GainThroughTanh(Stream):
    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        h = self.first(x)
        return self.read(x + self.block(torch.tanh(h)))


class GainUsedAgain(Stream):
    """The gain of the last norm multiplies once more."""

    def read(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.last(x) * self.last.weight)
        return found


class OneReaderBehindTwoGains(Stream):
    """Two blocks share their weights and have norms of their own: which gain should be folded into them?"""

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        x = x + self.block(self.first(x))
        x = x + self.block(self.last(x))
        found: Tensor = self.head(F.layer_norm(x, (WIDTH,)))
        return found


class PointwiseOnTheStream(Stream):
    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        return self.read(F.gelu(x + self.block(self.first(x))))


class GatedStream(Stream):
    """A gate for each unit of the stream, as in highway networks."""

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        return self.read(x * torch.sigmoid(self.block(self.first(x))))


class SlicedStream(Stream):
    """Half of the stream skips the block."""

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        half = WIDTH // 2
        h = self.block(self.first(x))[..., :half]
        return self.read(x + F.pad(h, (0, half)))


class GroupedNorm(Stream):
    """The norm sees two halves of the stream apart."""

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        halves = self.first(x).unflatten(-1, (2, -1))
        normed = F.layer_norm(halves, (WIDTH // 2,)).flatten(-2)
        return self.read(x + self.block(normed))


STREAMS: dict[type[Stream], str] = {
    PostNorm: "the gain 'first.weight' cannot be folded",
    NormReenters: "the gain 'first.weight' cannot be folded",
    GainThroughTanh: "aten.tanh",
    GainUsedAgain: "the gain 'last.weight' cannot be folded",
    OneReaderBehindTwoGains: "cannot be folded into 'up.weight'",
    PointwiseOnTheStream: "aten.gelu",
    GatedStream: "aten.sigmoid",
}


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
@pytest.mark.parametrize("trap", STREAMS, ids=lambda trap: trap.__name__)
def test_traps_of_a_stream(trap: type[Stream], norm: Norm) -> None:
    net = randomised(trap(norm))
    spec = proved(net, IDS)
    assert "orthogonal" not in kind_of(spec, "up.weight", 1)
    assert STREAMS[trap] in spec.limits["embed"]
    assert claim_fails(net, "embed", "orthogonal_mean", IDS)


@pytest.mark.parametrize("trap", [SlicedStream, GroupedNorm])
def test_streams_whose_parts_are_treated_apart(trap: type[Stream]) -> None:
    """There is no group of the whole stream any more, or one that keeps to permutations."""
    spec = proved(randomised(trap()), IDS)
    kinds = kind_of(spec, "head.weight", 1).split("+")
    assert not {"orthogonal", "orthogonal_mean", "linear"} & set(kinds)


def test_without_a_trap_the_stream_turns() -> None:
    """The control of all of the above."""
    assert kind_of(proved(randomised(Stream()), IDS), "up.weight", 1) == (
        "orthogonal_mean"
    )
    turned = proved(randomised(Stream(nn.RMSNorm)), IDS)
    assert kind_of(turned, "up.weight", 1) == "orthogonal"


# ---- readers and shifts


class TwoReaders(Stream):
    """A gated block: both sides read the same norm."""

    def __init__(self, *, both: bool) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, HIDDEN, bias=both)

    def block(self, h: Tensor) -> Tensor:
        found: Tensor = self.down(F.gelu(self.up(h)) * self.gate(h).sigmoid())
        return found


@pytest.mark.parametrize("both", [False, True])
def test_a_bias_in_only_one_reader_keeps_the_shift(both: bool) -> None:
    """β becomes β/γ; only where every reader has a bias can it go into the biases and be 0."""
    net = randomised(TwoReaders(both=both))
    spec = proved(net, IDS)
    assert kind_of(spec, "up.weight", 1) == "orthogonal_mean"
    state = net.state_dict()
    canonical = spec.canonicalise(state)
    shift = torch.zeros(WIDTH).double()
    if not both:
        shift = state["first.bias"] / state["first.weight"]
    torch.testing.assert_close(canonical["first.bias"], shift)
    # What is read with a shift must keep its mean.
    assert bool(spec.centres) is both
    before = net(IDS)
    net.load_state_dict(canonical)
    torch.testing.assert_close(net(IDS), before, rtol=1e-9, atol=1e-9)


class Streams(nn.Module):
    """Two streams whose blocks share one reader; each has an embedding, a writer and a head of its own."""

    def __init__(self, *, gains: bool) -> None:
        super().__init__()
        self.a, self.b = (nn.Embedding(WORDS, WIDTH) for _ in range(2))
        self.norm_a, self.norm_b = (
            nn.RMSNorm(WIDTH, elementwise_affine=gains) for _ in range(2)
        )
        self.up = nn.Linear(WIDTH, HIDDEN)
        self.down_a, self.down_b = (nn.Linear(HIDDEN, WIDTH) for _ in range(2))
        self.head_a, self.head_b = (nn.Linear(WIDTH, WORDS) for _ in range(2))

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        x, y = self.a(ids), self.b(ids)
        x = x + self.down_a(F.gelu(self.up(self.norm_a(x))))
        y = y + self.down_b(F.gelu(self.up(self.norm_b(y))))
        bare = (WIDTH,)
        return (
            self.head_a(F.rms_norm(x, bare)),
            self.head_b(F.rms_norm(y, bare)),
        )


def test_a_weight_shared_between_two_streams_turns_them_together() -> None:
    net = randomised(Streams(gains=False))
    spec = proved(net, IDS)
    (group,) = spec.maps["a.weight"].groups
    assert spec.groups[group].kind == "orthogonal"
    assert spec.maps["b.weight"].groups == (group,)
    # One of the two alone is wrong.
    alone = {n: m for n, m in spec.maps.items() if not n.endswith("_b.weight")}
    del alone["b.weight"], alone["down_b.bias"]
    wrong = replace(spec, maps=alone)
    element = action_of(spec.groups[group]).far(spec.groups[group])
    with pytest.raises(EquivalenceError):
        check_equivalence(net, Transform.of(wrong, {group: element}), IDS)


def test_a_shared_reader_takes_the_gain_of_neither_stream() -> None:
    net = randomised(Streams(gains=True))
    spec = proved(net, IDS)
    assert "orthogonal" not in kind_of(spec, "up.weight", 1)
    assert "cannot be folded into 'up.weight'" in spec.limits["a"]
    assert claim_fails(net, "a", "orthogonal", IDS)


# ---- attention


class Attention(nn.Module):
    """Two heads on rows; ``softmax`` says over what the weights are normalised."""

    def __init__(self, softmax: str = "keys") -> None:
        super().__init__()
        self.softmax = softmax
        self.q, self.k, self.v, self.o = (
            nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4)
        )

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (2, -1)).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        if self.softmax == "features":
            # Efficient attention: keys and values meet first.
            mixed = q.softmax(-1) @ (k.softmax(-1).mT @ v)
        else:
            over = {"keys": -1, "heads": 1}[self.softmax]
            mixed = (q @ k.mT).softmax(over) @ v
        found: Tensor = self.o(mixed.transpose(1, 2).flatten(-2))
        return found


ROWS = torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(1))


def test_a_softmax_over_heads_leaves_the_maps_inside_them() -> None:
    """Scores are the same whatever basis a head computes them in; the heads themselves keep to their order or change
    places, but none may be scaled."""
    spec = proved(randomised(Attention("heads")), ROWS.double())
    assert kind_of(spec, "q.weight", 0) == "linear"
    assert kind_of(spec, "v.weight", 0) == "linear"
    (heads,) = [g for g in spec.groups.values() if g.parent is None]
    assert (heads.kind, heads.size) == ("permutation", 2)


def test_a_softmax_over_features_leaves_their_order_only() -> None:
    net = randomised(Attention("features"))
    spec = proved(net, ROWS.double())
    assert kind_of(spec, "q.weight", 0) == "permutation"
    assert kind_of(spec, "v.weight", 0) == "linear"
    (group,) = spec.maps["q.weight"].groups
    assert "aten._softmax" in spec.limits[group]
    assert claim_fails(net, group, "orthogonal", ROWS.double())


def turned(x: Tensor, *, neighbours: bool) -> Tensor:
    """Rotary positions: pairs are ``(i, i + half)``, or neighbours."""
    if neighbours:
        pairs = x.unflatten(-1, (-1, 2))
        a, b = pairs.unbind(-1)
    else:
        a, b = x.chunk(2, -1)
    rates = 10.0 ** -torch.arange(a.shape[-1], dtype=x.dtype)
    angles = torch.arange(x.shape[-2], dtype=x.dtype)[:, None] * rates
    cos, sin = angles.cos(), angles.sin()
    first, second = a * cos - b * sin, b * cos + a * sin
    if neighbours:
        return torch.stack((first, second), -1).flatten(-2)
    return torch.cat((first, second), -1)


class Rotary(Attention):
    def __init__(self, *, neighbours: bool) -> None:
        super().__init__()
        self.neighbours = neighbours

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (2, -1)).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        q, k = (turned(t, neighbours=self.neighbours) for t in (q, k))
        mixed = F.scaled_dot_product_attention(q, k, v)
        found: Tensor = self.o(mixed.transpose(1, 2).flatten(-2))
        return found


@pytest.mark.parametrize("neighbours", [False, True])
def test_rotary_positions_fix_the_order_inside_a_head(
    neighbours: bool,
) -> None:
    """Every pair turns at a rate of its own: pairs cannot change places, and only the right pairs have a factor."""
    net, rows = randomised(Rotary(neighbours=neighbours)), ROWS.double()
    # Which units are pairs is tried out.
    spec = proved(net, rows, guesses=True)
    inside = [spec.groups[g] for g in spec.maps["q.weight"].groups]
    planes = [group for group in inside if group.kind == "plane"]
    assert len(planes) == 1
    assert all(group.size == 2 for group in inside if group not in planes)
    # Two pairs of the first head that change places.
    first, second = ([0, 1], [2, 3]) if neighbours else ([0, 2], [1, 3])
    swapped = torch.arange(WIDTH)
    swapped[first], swapped[second] = swapped[second], swapped[first].clone()
    before = net(rows)
    state = net.state_dict()
    moved = {n: state[n][swapped] for n in ("q.weight", "k.weight")}
    net.load_state_dict({**state, **moved})
    assert (net(rows) - before).abs().max() > 1e-3
    net.load_state_dict(state)
    # The other layout's pairs.
    other = torch.tensor([0, 2, 1, 3])
    maps = dict(spec.maps)
    for name in ("q.weight", "k.weight"):
        components = []
        for component in spec.maps[name].components:
            if component.group == planes[0].id:
                blocks = component.index.reshape(2, 4)[:, other]
                component = replace(component, index=blocks.reshape(-1, 1))
            components.append(component)
        maps[name] = replace(spec.maps[name], components=tuple(components))
    wrong = replace(spec, maps=maps)
    element = action_of(planes[0]).far(planes[0])
    claimed = Transform.of(wrong, {planes[0].id: element})
    with pytest.raises(EquivalenceError):
        check_equivalence(net, claimed, rows)


# ---- numbers inside units


def test_a_tiny_epsilon_of_a_batch_norm_counts() -> None:
    """The gate could not see it: ε = 1e-14 beside a variance of 1 is below its tolerance."""
    net = nn.Sequential(
        nn.Linear(WIDTH, HIDDEN),
        nn.BatchNorm1d(HIDDEN, eps=1e-14),
        nn.ReLU(),
        nn.Linear(HIDDEN, 3),
    )
    rows = torch.randn(16, WIDTH).double()
    spec = proved(randomised(net).eval(), rows)
    assert kind_of(spec, "0.weight", 0) == "permutation"
    assert kind_of(spec, "1.running_var", 0) == "permutation"
    assert kind_of(spec, "1.weight", 0) == "scale"


class AlwaysDropping(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self[1](F.dropout(self[0](x), 0.5, training=True))
        return found


@pytest.mark.parametrize("place", [1, 2])
def test_dropout_is_judged_in_eval_mode_wherever_it_stands(
    place: int,
) -> None:
    """The function of a network is that of eval mode, so a network in training has the same symmetries."""
    layers: list[nn.Module] = [nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, 3)]
    layers.insert(place, nn.Dropout(0.5))
    net = randomised(nn.Sequential(*layers)).train()
    rows = torch.randn(16, WIDTH).double()
    spec = proved(net, rows)
    assert kind_of(spec, "0.weight", 0) == "linear"
    assert spec == proved(net.eval(), rows)


def test_dropout_that_is_never_off_leaves_nothing() -> None:
    """Which units are dropped depends on where they stand."""
    net = AlwaysDropping(nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, 3))
    spec = proved(randomised(net).eval(), torch.randn(16, WIDTH).double())
    assert not spec.groups


@dataclass(frozen=True)
class Parametrised:
    """A ReLU network with one parametrised layer, and what each of its axes should be.

    Args:
        of: Parametrises a layer.
        layer: Which one.
        kinds: Kind by tensor and dimension; an empty one is pinned.
    """

    of: Callable[[nn.Module], nn.Module]
    layer: int
    kinds: dict[tuple[str, int], str]


WEIGHT = "parametrizations.weight"
PARAMETRISED = {
    # The gain of each row is a number for each unit; the direction's length does not matter.
    "weight norm, writing": Parametrised(
        parametrizations.weight_norm,
        0,
        {
            (f"0.{WEIGHT}.original0", 0): "scale",
            (f"0.{WEIGHT}.original1", 0): "permutation",
            ("0.bias", 0): "scale",
            ("2.weight", 1): "scale",
        },
    ),
    # A scaled column would change the length of every row.
    "weight norm, reading": Parametrised(
        parametrizations.weight_norm,
        2,
        {
            ("0.weight", 0): "permutation",
            (f"2.{WEIGHT}.original1", 1): "permutation",
        },
    ),
    # All rows are divided by one number, which depends on every unit.
    "spectral norm, writing": Parametrised(
        parametrizations.spectral_norm,
        0,
        {
            (f"0.{WEIGHT}.original", 0): "permutation",
            (f"0.{WEIGHT}.0._u", 0): "permutation",
            ("2.weight", 1): "permutation",
        },
    ),
}


@pytest.mark.parametrize("name", PARAMETRISED)
def test_parametrised_weights(name: str) -> None:
    case = PARAMETRISED[name]
    net = nn.Sequential(
        nn.Linear(WIDTH, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 3)
    )
    case.of(net[case.layer])
    spec = proved(randomised(net).eval(), torch.randn(16, WIDTH).double())
    found = {place: kind_of(spec, *place) for place in case.kinds}
    assert found == case.kinds


def test_an_orthogonal_weight_is_left_alone() -> None:
    """Its parameters are coordinates of rotations: no reordering of them is one of its rows."""
    net = nn.Sequential(
        parametrizations.orthogonal(nn.Linear(WIDTH, HIDDEN)),
        nn.ReLU(),
        nn.Linear(HIDDEN, 3),
    )
    with pytest.warns(UntracedWarning, match="householder"):
        spec = proved(randomised(net).eval(), torch.randn(16, WIDTH).double())
    assert not spec.groups


class Quantised(nn.Module):
    """Weights of 8 bits with a factor for each row, or without."""

    def __init__(self, activation: nn.Module, *, factors: bool) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        bits = torch.randint(-9, 9, (HIDDEN, WIDTH), generator=generator)
        self.register_buffer("bits", bits.to(torch.int8))
        self.factors = nn.Parameter(torch.ones(HIDDEN)) if factors else None
        self.activation = activation
        self.out = nn.Linear(HIDDEN, 3)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.bits.to(x.dtype)
        if self.factors is not None:
            weight = weight * self.factors[:, None]
        found: Tensor = self.out(self.activation(x @ weight.T))
        return found


@pytest.mark.parametrize("factors", [False, True])
@pytest.mark.parametrize(
    ("activation", "kind"),
    [
        (nn.ReLU(), "scale"),
        (nn.Tanh(), "sign"),
        (nn.Identity(), "linear"),
    ],
)
def test_integers_are_reordered_and_nothing_else(
    activation: nn.Module, kind: str, factors: bool
) -> None:
    """No number times an 8-bit weight is one; the factor of a row takes it instead."""
    net = randomised(Quantised(activation, factors=factors))
    spec = proved(net, torch.randn(16, WIDTH).double())
    assert kind_of(spec, "bits", 0) == "permutation"
    assert kind_of(spec, "out.weight", 1) == (
        kind if factors else "permutation"
    )
    (group,) = spec.maps["bits"].groups
    assert "aten._to_copy" in spec.limits[group]
    canonical = spec.canonicalise(net.state_dict())
    assert canonical["bits"].dtype == torch.int8
    assert torch.equal(canonical["bits"], net.state_dict()["bits"])
