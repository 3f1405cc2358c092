"""Equal lengths of writers and readers: the function stays, once is enough, hidden stretches are gone."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from helpers.elements import inside
from helpers.planted import Transformer
from hypothesis import given, settings
from torch import Tensor, nn

from lightning_rebasin.symmetry import (
    AxisMap,
    Component,
    Group,
    PermutationSpec,
    TensorInfo,
    Transform,
    infer_spec,
)
from lightning_rebasin.symmetry.actions.balance import (
    back_from_balance,
    balance_state,
    balancing,
)

HEADS, SIZE, WIDTH = 2, 4, 3
STRETCHING = pytest.mark.parametrize("kind", ["linear", "scale", "plane"])


def pair_spec(
    group: Group, power: int = -1, *, read: bool = True
) -> PermutationSpec:
    """``writer`` and ``reader``, both ``(members, WIDTH)``, and a matrix that nothing moves."""
    members = torch.arange(group.members)[:, None]
    sites = ((group.members,), (WIDTH,))
    tensors = {}
    maps = {}
    for name, power_here in (("writer", 1), ("reader", power)):
        tensors[name] = TensorInfo((group.members, WIDTH))
        if name == "writer" or read:
            component = Component(group.id, (0,), members, power_here)
            maps[name] = AxisMap(name, sites, (component,))
    tensors["other"] = TensorInfo((2,))
    groups = {group.id: group}
    if group.parent is not None:
        groups = {group.parent.id: group.parent, **groups}
    return PermutationSpec(groups, tensors, maps)


def pair_state(spec: PermutationSpec, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(info.shape, generator=generator, dtype=torch.float64)
        for name, info in spec.tensors.items()
    }


def heads_of(state: dict[str, Tensor], name: str) -> Tensor:
    return state[name].reshape(HEADS, SIZE, WIDTH)


def products(state: dict[str, Tensor]) -> Tensor:
    return heads_of(state, "reader").mT @ heads_of(state, "writer")


def balanced(
    spec: PermutationSpec, state: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Single units included, which canonical gauge leaves as they are."""
    return balancing(spec, state).apply(state)


# Fewer columns than units make the pairs rank-deficient, as biases and narrow layers do.
@pytest.mark.parametrize("kind", ["scale", "linear"])
@given(seed=st.integers(0, 2**31))
@settings(deadline=None, max_examples=5)
def test_what_readers_make_of_writers_stays(kind: str, seed: int) -> None:
    spec = pair_spec(inside(kind, SIZE, HEADS))
    state = pair_state(spec, seed)
    found = balanced(spec, state)
    torch.testing.assert_close(
        products(found), products(state), rtol=1e-8, atol=1e-8
    )
    assert torch.equal(found["other"], state["other"])


def full_pair(kind: str) -> tuple[PermutationSpec, dict[str, Tensor]]:
    spec = pair_spec(inside(kind, 2, 4))
    return spec, pair_state(spec, 1)


@STRETCHING
def test_balancing_again_changes_nothing(kind: str) -> None:
    spec, state = full_pair(kind)
    found = balanced(spec, state)
    again = balanced(spec, found)
    for name, tensor in found.items():
        torch.testing.assert_close(again[name], tensor, rtol=1e-7, atol=1e-7)


@STRETCHING
def test_hidden_stretches_are_gone(kind: str) -> None:
    """Two copies that differ by a random element differ by a rotation afterwards: all inner products are equal."""
    spec, state = full_pair(kind)
    generator = torch.Generator().manual_seed(2)
    element = Transform.random(spec, generator)
    only = element.only(["inner"])
    other = only.apply(state)
    ends = [balanced(spec, end) for end in (state, other)]
    for name in ("writer", "reader"):
        a, b = (end[name].reshape(4, 2, WIDTH) for end in ends)
        torch.testing.assert_close(a.mT @ a, b.mT @ b, rtol=1e-6, atol=1e-6)


def test_balanced_heads_have_equal_gram_matrices() -> None:
    spec, state = full_pair("linear")
    found = balanced(spec, state)
    w, r = (found[name].reshape(4, 2, WIDTH) for name in ("writer", "reader"))
    torch.testing.assert_close(w @ w.mT, r @ r.mT, rtol=1e-6, atol=1e-6)
    # The lengths are the singular values of the product, as from √S·Uᵀ and √S·Vᵀ.
    expected = torch.linalg.svdvals(r.mT @ w)[:, :2]
    found_lengths = torch.linalg.svdvals(w).square()
    torch.testing.assert_close(found_lengths, expected, rtol=1e-6, atol=1e-6)


def test_dead_units_stay_where_they_are() -> None:
    """Pruned: nothing writes unit 0, but weights that would read it are still there."""
    spec = pair_spec(inside("scale", 4))
    state = pair_state(spec)
    state["writer"][0] = 0
    found = balanced(spec, state)
    torch.testing.assert_close(found["reader"][0], state["reader"][0])
    again = balanced(spec, found)
    torch.testing.assert_close(again["reader"], found["reader"])


@pytest.mark.parametrize("kind", ["permutation", "sign", "orthogonal"])
def test_kinds_that_keep_lengths_have_nothing_to_balance(kind: str) -> None:
    spec = pair_spec(inside(kind, SIZE))
    state = pair_state(spec)
    found = balance_state(spec, state)
    assert all(found[name] is state[name] for name in state)
    assert balancing(spec, state).is_identity


@pytest.mark.parametrize(
    "spec",
    [
        pair_spec(inside("scale", SIZE), read=False),
        pair_spec(inside("scale", SIZE), power=-2),
    ],
    ids=["nobody reads", "read through a square"],
)
def test_what_has_no_two_sides_stays(spec: PermutationSpec) -> None:
    assert balancing(spec, pair_state(spec)).is_identity


def test_weights_of_zeros_stay_zeros() -> None:
    """LoRA starts with one factor at 0."""
    spec = pair_spec(inside("linear", SIZE))
    state = pair_state(spec)
    state["reader"].zero_()
    found = balance_state(spec, state)
    for name, tensor in state.items():
        assert torch.equal(found[name], tensor)


def test_the_gauge_of_a_transformer_computes_its_function() -> None:
    torch.manual_seed(0)
    model = Transformer(width=8, heads=2, hidden=6, layers=1, tokens=5)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    model = model.double().eval()
    tokens = torch.tensor([[0, 1, 2, 3], [4, 3, 0, 1]])
    spec = infer_spec(model, tokens, kinds="all")
    state = {name: t.clone() for name, t in model.state_dict().items()}
    before = model(tokens)
    found = spec.canonicalise(state)
    model.load_state_dict(found)
    torch.testing.assert_close(model(tokens), before, rtol=1e-9, atol=1e-9)
    norms = [name for name in state if "norm" in name]
    assert len(norms) == 6
    for name in norms:
        expected = 1.0 if name.endswith("weight") else 0.0
        assert torch.equal(found[name], torch.full_like(found[name], expected))
    for writer in ("embed.weight", "position"):
        means = found[writer].mean(-1)
        torch.testing.assert_close(means, torch.zeros_like(means))
    again = spec.canonicalise(found)
    for name, tensor in found.items():
        torch.testing.assert_close(again[name], tensor, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", ["linear", "plane"])
def test_canonical_gauge_balances_what_mixes_units(kind: str) -> None:
    spec, state = full_pair(kind)
    found = balance_state(spec, state)
    for name, tensor in balanced(spec, state).items():
        assert torch.equal(found[name], tensor)
    assert back_from_balance(spec, state).is_identity


def test_canonical_gauge_keeps_the_lengths_of_single_units() -> None:
    spec, state = full_pair("scale")
    found = balance_state(spec, state)
    assert all(torch.equal(found[name], state[name]) for name in state)


def test_back_from_balance_leads_home() -> None:
    spec, state = full_pair("scale")
    there = balanced(spec, state)
    back = back_from_balance(spec, state).apply(there)
    assert not torch.allclose(there["writer"], state["writer"])
    for name, tensor in balance_state(spec, state).items():
        torch.testing.assert_close(back[name], tensor)
