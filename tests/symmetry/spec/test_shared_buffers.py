"""Buffers move like weights, but never where two models share them."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.models import randomise
from torch import nn

from lightning_rebasin.errors import PermutationError
from lightning_rebasin.matching import (
    match_activations,
    match_many,
    match_weights,
)
from lightning_rebasin.merging import interpolate
from lightning_rebasin.symmetry import (
    Permutation,
    check_equivalence,
    infer_spec,
)
from lightning_rebasin.symmetry.edit.restrict import restrict
from lightning_rebasin.symmetry.spec.shared_buffers import (
    pin_identical_buffers,
)

SHARED = "is the same in the models"


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def randomly(spec, seed=0):
    return Permutation.random(spec, generator(seed))


class RandomFeatures(nn.Module):
    """Cosines of random projections that are never trained: a kernel machine with a head."""

    def __init__(self, seed=0):
        super().__init__()
        self.register_buffer(
            "features", torch.randn(12, 3, generator=generator(seed))
        )
        self.register_buffer(
            "phase", torch.rand(12, generator=generator(seed + 50))
        )
        self.head = nn.Linear(12, 4)
        randomise(self.head, seed)

    def forward(self, x):
        return self.head((x @ self.features.T + self.phase).cos())


class Positions(nn.Module):
    """A table of sinusoids is added to the embedded sequence, so its columns are tied to the embedding's."""

    def __init__(self, seed=0, persistent=True):
        super().__init__()
        self.embed, self.inner, self.head = (
            nn.Linear(3, 6),
            nn.Linear(6, 8),
            nn.Linear(8, 2),
        )
        self.register_buffer(
            "table",
            torch.arange(24.0).reshape(4, 6).sin(),
            persistent=persistent,
        )
        randomise(self, seed)
        self.table.copy_(torch.arange(24.0).reshape(4, 6).sin())

    def forward(self, z):
        return self.head(torch.relu(self.inner(self.embed(z) + self.table)))


class Slopes(nn.Module):
    """Attention with one constant slope per head (as in ALiBi): heads differ, what is inside them does not."""

    def __init__(self, seed=0):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(8, 8) for _ in range(4))
        self.register_buffer("slopes", torch.zeros(2, 1, 1))
        randomise(self, seed)
        self.slopes.copy_(torch.tensor([0.5, 0.25])[:, None, None])

    def forward(self, x):
        q, k, v = (
            f(x).unflatten(-1, (2, 4)).transpose(1, 2)
            for f in (self.q, self.k, self.v)
        )
        distance = torch.arange(5)[:, None] - torch.arange(5)
        weights = (q @ k.mT - self.slopes * distance.abs()).softmax(-1)
        return self.o((weights @ v).transpose(1, 2).flatten(2))


def sizes(spec):
    return sorted(g.size for g in spec.groups.values())


X = torch.randn(5, 3, generator=generator(9))
Z = torch.randn(2, 4, 3, generator=generator(9))


def test_different_buffers_are_matched_like_weights():
    """Their features are different draws; the second network is the first one in another order, plus noise."""
    net = RandomFeatures()
    spec = infer_spec(net, X)
    assert sizes(spec) == [12] and set(spec.maps) == {
        "features",
        "phase",
        "head.weight",
    }
    planted = randomly(spec)
    assert check_equivalence(net, planted, X) < 1e-12
    a = net.state_dict()
    b = {
        n: t + 0.01 * torch.randn(t.shape, generator=generator(3))
        for n, t in planted.apply(a).items()
    }
    assert spec.pin_identical_buffers(a, b) is spec
    found = match_weights(spec, a, b).permutation
    assert found == planted.inverse()
    middle = interpolate(a, found.apply(b), 0.5)
    for name in a:
        torch.testing.assert_close(middle[name], a[name], atol=0.03, rtol=0)


def test_identical_tables_stay_and_the_spec_says_why():
    one, two = Positions(1), Positions(2)
    spec = infer_spec(one, Z)
    assert (
        sizes(spec) == [6, 8]
        and check_equivalence(one, randomly(spec), Z) < 1e-12
    )
    a, b = one.state_dict(), two.state_dict()
    pinned = spec.pin_identical_buffers(a, b)
    assert sizes(pinned) == [8] and sizes(spec) == [6, 8]
    for name, dim in (("table", 1), ("embed.weight", 0), ("inner.weight", 1)):
        assert "buffer 'table'" in pinned.explain(
            name
        ) and SHARED in pinned.explain(name)
        assert any(
            p.tensor == name and p.dim == dim and SHARED in p.reason
            for p in pinned.pinned
        )
    assert SHARED in str(pinned)
    results = [
        match_weights(spec, a, b),
        match_activations(spec, one, two, [Z]),
    ]
    for p in (
        *(r.permutation for r in results),
        *match_many(spec, [a, b, lambda: a]).permutations,
    ):
        assert p.spec == pinned
        assert torch.equal(p.apply(b)["table"], a["table"])
    assert check_equivalence(two, results[0].permutation, Z) < 1e-12
    # Where the tables differ, they move.
    moved = {
        **b,
        "table": b["table"] + torch.randn(4, 6, generator=generator()),
    }
    assert match_weights(spec, a, moved).permutation.spec is spec


def test_the_first_of_two_equal_models_is_enough_to_pin():
    spec = infer_spec(Positions(1), Z)
    states = [Positions(seed).state_dict() for seed in (1, 2, 3)]
    states[0]["table"] = states[0]["table"] * 2
    assert "table" not in spec.pin_identical_buffers(*states).maps
    states[1]["table"] = states[1]["table"] * 3
    assert "table" in spec.pin_identical_buffers(*states).maps


def test_heads_are_pinned_and_what_is_inside_them_stays_free():
    x = torch.randn(2, 5, 8, generator=generator())
    net, other = Slopes(1), Slopes(2)
    spec = infer_spec(net, x)
    # heads 2!, and inside each of the two heads 4! for queries and keys and 4! for values
    assert spec.log10_symmetries == pytest.approx(math.log10(2 * 24**4))
    pinned = spec.pin_identical_buffers(net.state_dict(), other.state_dict())
    assert pinned.log10_symmetries == pytest.approx(math.log10(24**4))
    p = randomly(pinned)
    assert check_equivalence(net, p, x) < 1e-12
    assert not torch.equal(
        p.apply(net.state_dict())["v.weight"], net.state_dict()["v.weight"]
    )


def test_values_that_no_permutation_changes_pin_nothing():
    class Masked(Positions):
        def forward(self, z):
            return self.head(
                torch.relu(self.inner(self.embed(z) * self.table))
            )

    one, two = Masked(1), Masked(2)
    for net in (one, two):
        net.table.copy_(torch.tensor([1.0, 0.0, 1.0, 2.0])[:, None])
    spec = infer_spec(one, Z)
    assert sizes(spec) == [6, 8]
    assert (
        spec.pin_identical_buffers(one.state_dict(), two.state_dict()) is spec
    )


def test_statistics_move_though_two_models_share_them():
    class Frozen(nn.Module):
        """Batch norm whose every number is a buffer, as detection models keep it."""

        def __init__(self, seed):
            super().__init__()
            self.a, self.b = nn.Linear(3, 6), nn.Linear(6, 2)
            self.norm = nn.Module()
            for i, name in enumerate(
                ("weight", "bias", "running_mean", "running_var")
            ):
                self.norm.register_buffer(
                    name, torch.rand(6, generator=generator(i)) + 0.5
                )
            randomise(self.a, seed)
            randomise(self.b, seed)

        def forward(self, x):
            n = self.norm
            return self.b(
                (
                    (self.a(x) - n.running_mean)
                    * n.running_var.rsqrt()
                    * n.weight
                    + n.bias
                ).relu()
            )

    one, two = Frozen(1), Frozen(2)
    spec = infer_spec(one, X)
    assert sizes(spec) == [6] and {"norm.weight", "norm.running_var"} <= set(
        spec.maps
    )
    assert (
        spec.pin_identical_buffers(one.state_dict(), two.state_dict()) is spec
    )


def test_tables_in_another_precision_are_the_same_table():
    spec = infer_spec(Positions(1), Z)
    a, b = Positions(1).state_dict(), Positions(2).state_dict()
    half = {name: tensor.bfloat16() for name, tensor in b.items()}
    assert "table" not in spec.pin_identical_buffers(a, half).maps
    half["table"][0, 0] += 0.5
    assert "table" in spec.pin_identical_buffers(a, half).maps


def test_tables_outside_of_the_state_dict_never_move():
    net = Positions(persistent=False)
    spec = infer_spec(net, Z)
    assert (
        sizes(spec) == [8]
        and check_equivalence(net, randomly(spec), Z) < 1e-12
    )


@pytest.mark.filterwarnings("ignore:.*spectral_norm.*:FutureWarning")
def test_power_iteration_vectors_move_with_their_channels():
    net = nn.Sequential(
        nn.utils.spectral_norm(nn.Linear(3, 7)),
        nn.ReLU(),
        nn.utils.spectral_norm(nn.Linear(7, 2)),
    )
    spec = infer_spec(net, X)
    assert sizes(spec) == [7] and {"0.weight_u", "2.weight_v"} <= set(
        spec.maps
    )
    assert check_equivalence(net, randomly(spec), X) < 1e-12


def test_an_earlier_permutation_starts_the_next_matching():
    spec = infer_spec(Positions(1), Z)
    a, b = Positions(1).state_dict(), Positions(2).state_dict()
    first = match_weights(spec, a, b).permutation
    again = match_weights(spec, a, b, init=first)
    assert again.permutation.spec == first.spec
    full = randomly(spec)
    started = match_weights(spec, a, b, init=full, max_sweeps=1)
    assert torch.equal(started.permutation.apply(b)["table"], a["table"])
    kept = restrict(full, spec, first.spec)
    assert {g: o.tolist() for g, o in kept.orders.items()} == {
        "inner": full["inner"].tolist()
    }
    other = infer_spec(RandomFeatures(), X)
    assert restrict(randomly(other), spec, first.spec).spec is other
    with pytest.raises(PermutationError, match="another spec"):
        match_weights(spec, a, b, init=randomly(other))


def test_states_that_do_not_fit_are_left_to_the_check():
    spec = infer_spec(Positions(1), Z)
    a = Positions(1).state_dict()
    wrong = {"table": a["table"].flatten()}
    assert pin_identical_buffers(spec, [a, wrong]) is spec
    assert pin_identical_buffers(spec, [wrong, wrong]) is spec
    assert pin_identical_buffers(spec, [a]) is spec
