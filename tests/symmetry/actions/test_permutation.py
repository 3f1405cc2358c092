"""Permutations: group laws, nesting, flat indices, what is no permutation."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from helpers.algebra import randomly, same, seeds, specs
from helpers.specs import nested_spec, random_state
from hypothesis import given, settings

from lightning_rebasin.errors import PermutationError
from lightning_rebasin.symmetry import Permutation, PermutationSpec


@given(specs, seeds, seeds, seeds)
@settings(deadline=None, max_examples=60)
def test_group_laws(spec: PermutationSpec, s1: int, s2: int, s3: int) -> None:
    p, q, r = randomly(spec, s1), randomly(spec, s2), randomly(spec, s3)
    one = Permutation.identity(spec)
    assert p.compose(q).compose(r) == p.compose(q.compose(r))
    assert p.compose(one) == p == one.compose(p)
    assert (
        p.compose(p.inverse()).is_identity
        and p.inverse().compose(p).is_identity
    )
    assert p.compose(q).inverse() == q.inverse().compose(p.inverse())
    assert p.inverse().inverse() == p
    assert (
        Permutation.from_flat(spec, {g: p.flat(g) for g in spec.groups}) == p
    )


@given(specs, seeds, seeds)
@settings(deadline=None, max_examples=60)
def test_apply_is_an_action(spec: PermutationSpec, s1: int, s2: int) -> None:
    p, q, state = randomly(spec, s1), randomly(spec, s2), random_state(spec)
    assert same(p.compose(q).apply(state), p.apply(q.apply(state)))
    assert same(p.inverse().apply(p.apply(state)), state)
    assert same(Permutation.identity(spec).apply(state), state)
    for name, tensor in p.apply(state).items():  # nothing is lost or invented
        assert torch.equal(
            tensor.flatten().sort().values, state[name].flatten().sort().values
        )


def test_random_is_seeded_and_uniform() -> None:
    spec = PermutationSpec.from_table({"w": ("h",)}, {"w": (3,)})
    assert randomly(spec, 5) == randomly(spec, 5)
    generator = torch.Generator().manual_seed(0)
    drawn = [
        tuple(Permutation.random(spec, generator)["h"].tolist())
        for _ in range(600)
    ]
    counts = [drawn.count(order) for order in itertools.permutations(range(3))]
    assert (
        min(counts) > 60 and sum(counts) == 600
    )  # 100 each, standard deviation 9


def test_moved_and_repr() -> None:
    spec = nested_spec(3, 4, 5)
    p = Permutation(spec, {"heads": torch.tensor([1, 0, 2])})
    assert p.moved == {"heads": 2 / 3, "value": 2 / 3, "model": 0.0}
    assert repr(p) == "Permutation(3 groups, 50.0% of 20 units moved)"
    assert not p.is_identity


def test_identity_knows_itself_and_compares() -> None:
    spec = nested_spec()
    assert Permutation.identity(spec).is_identity
    assert Permutation.identity(spec) != randomly(spec, 3)
    assert Permutation.identity(spec) != "identity"


@pytest.mark.parametrize(
    ("orders", "message"),
    [
        ({"nobody": torch.arange(3)}, "no group 'nobody'"),
        ({"heads": torch.tensor([0, 0, 1])}, "not a permutation"),
        ({"heads": torch.tensor([0, 1, 3])}, "not a permutation"),
        ({"heads": torch.arange(4)}, "shape"),
        ({"value": torch.arange(4)}, "shape"),
        ({"heads": torch.tensor([0.0, 1.0, 2.0])}, "LongTensor"),
        ({"heads": torch.tensor([True, False, True])}, "LongTensor"),
        ({"heads": [0, 1, 2]}, "LongTensor"),
    ],
)
def test_bad_orders_are_refused(orders: Any, message: str) -> None:
    with pytest.raises(PermutationError, match=message):
        Permutation(nested_spec(3, 4, 5), orders)


def test_from_flat_refuses_broken_nesting() -> None:
    spec = nested_spec(2, 2, 2)
    with pytest.raises(
        PermutationError,
        match="'value' does not keep its parent's members together",
    ):
        Permutation.from_flat(spec, {"value": torch.tensor([0, 2, 1, 3])})
    swapped = {
        "heads": torch.tensor([1, 0]),
        "value": torch.tensor([0, 1, 2, 3]),
    }
    with pytest.raises(
        PermutationError, match="'value'"
    ):  # the units stay although their heads move
        Permutation.from_flat(spec, swapped)
    with pytest.raises(PermutationError, match="entries"):
        Permutation.from_flat(spec, {"heads": torch.arange(3)})
    with pytest.raises(PermutationError, match="no group"):
        Permutation.from_flat(spec, {"nobody": torch.arange(2)})
