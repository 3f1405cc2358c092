"""Biases of keys and values leave the weights where an attention cancels them or passes them on, and only there."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers.attention import (
    INPUTS,
    ROWS,
    Attention,
    halves,
    normed,
    proved_spec,
)
from torch import Tensor, nn

from lightning_rebasin import infer_spec
from lightning_rebasin.symmetry import PermutationSpec, Transform


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def moved_on(net: nn.Module) -> dict[str, set[int]]:
    """Entries of biases that are 0 in canonical gauge, which is the same function and stays."""
    net = net.double()
    spec = proved_spec(net)
    before = net(ROWS)
    canonical = spec.canonicalise(net.state_dict())
    again = spec.canonicalise(canonical)
    for name, tensor in canonical.items():
        torch.testing.assert_close(again[name], tensor, rtol=1e-6, atol=1e-8)
    net.load_state_dict(canonical)
    torch.testing.assert_close(net(ROWS), before, rtol=1e-10, atol=1e-10)
    found: dict[str, set[int]] = {}
    for bias in spec.biases:
        found.setdefault(bias.bias, set()).update(bias.entries)
        assert not canonical[bias.bias][list(bias.entries)].any()
    return found


ALL = set(range(8))
FORMS: dict[str, tuple[Callable[[], nn.Module], dict[str, set[int]]]] = {
    "kernel": (Attention, {"k.bias": ALL, "v.bias": ALL}),
    "by hand": (
        lambda: Attention(fused=False),
        {"k.bias": ALL, "v.bias": ALL},
    ),
    "packed": (
        lambda: Attention(packed="parts"),
        {"qkv.bias": set(range(8, 24))},
    ),
    "packed by heads": (
        lambda: Attention(packed="heads", fused=False),
        # Heads × (queries, keys, values) × 4 units.
        {"qkv.bias": set(range(4, 12)) | set(range(16, 24))},
    ),
    "grouped queries": (
        lambda: Attention(heads=4, key_heads=2),
        {"k.bias": ALL, "v.bias": ALL},
    ),
    "one key head": (
        lambda: Attention(heads=2, key_heads=1, fused=False),
        {"k.bias": set(range(4)), "v.bias": set(range(4))},
    ),
    # Each position turns the bias by another angle.
    "rotary": (lambda: Attention(halves), {"v.bias": ALL}),
    # The norm of a key depends on its bias.
    "normalised": (lambda: Attention(normed, fused=False), {"v.bias": ALL}),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_attention(form):
    make, expected = FORMS[form]
    assert moved_on(make()) == expected


class Odd(nn.Module):
    """An attention in which one thing is not as usual."""

    def __init__(self, trap: str) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(INPUTS, 4) for _ in range(3))
        self.o = nn.Linear(4, 3, bias=trap != "no bias behind")
        self.trap = trap

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q(x), self.k(x), self.v(x)
        if self.trap == "a position without key":
            k, v = nn.functional.pad(k, (0, 0, 0, 1)), v
            v = nn.functional.pad(v, (0, 0, 0, 1))
        scores = q @ k.transpose(-1, -2)
        over = -2 if self.trap == "softmax over queries" else -1
        attention = scores.softmax(over)
        if self.trap == "no softmax":
            attention = scores
        if self.trap == "dropped weights":
            attention = attention * (attention > 0.17)
        mixed = attention @ v
        if self.trap == "function behind":
            mixed = torch.tanh(mixed)
        y = self.o(mixed)
        if self.trap == "used elsewhere":
            y = y + (self.k.bias.sum() + self.v.bias.sum())
        return y


TRAPS: dict[str, set[str]] = {
    "none": {"k.bias", "v.bias"},
    "no bias behind": {"k.bias"},
    "a position without key": set(),
    "softmax over queries": set(),
    "no softmax": set(),
    # The keys would do, but a softmax that goes elsewhere is no attention that is known.
    "dropped weights": set(),
    "function behind": {"k.bias"},
    "used elsewhere": set(),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_traps(trap):
    assert set(moved_on(Odd(trap))) == TRAPS[trap]


def test_permutations_alone_move_no_bias():
    spec = infer_spec(Attention().double(), ROWS)
    assert spec.biases == ()


def test_biases_that_differ_only_in_gauge_are_the_same_in_canonical_gauge():
    """The gap between two copies of one function is closed without any matching."""
    net = Attention().double()
    spec = proved_spec(net)
    state = net.state_dict()
    other = dict(state)
    other["k.bias"] = state["k.bias"] + torch.randn(8).double()
    more = torch.randn(8).double()
    other["v.bias"] = state["v.bias"] + more
    other["o.bias"] = state["o.bias"] - state["o.weight"] @ more
    a, b = spec.canonicalise(state), spec.canonicalise(other)
    for name, tensor in a.items():
        torch.testing.assert_close(b[name], tensor, rtol=1e-9, atol=1e-9)


def test_the_table_speaks_of_moved_biases():
    spec = proved_spec(Attention())
    assert "2 biases of keys and values moved on" in str(spec)
    assert isinstance(spec, PermutationSpec)
    assert Transform.identity(spec).apply(Attention().double().state_dict())
