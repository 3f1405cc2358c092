"""Overrides take symmetries away exactly where they say, stay true symmetries, and leave the old spec alone."""

import math

import pytest
import torch
from helpers.models import (
    ModularAdditionTransformer,
    mlp,
    modular_addition_tokens,
    randomise,
)
from helpers.specs import blocks_spec, grouped_spec, nested_spec, random_state

from lightning_rebasin.errors import EquivalenceError, SpecError
from lightning_rebasin.symmetry import (
    AxisMap,
    Component,
    Group,
    Permutation,
    PermutationSpec,
    check_equivalence,
    infer_spec,
)
from lightning_rebasin.symmetry.edit.override import (
    BY_USER,
    free_group,
    pin_group,
    pin_tensor,
    tie_groups,
)

TABLE = {
    "0.weight": ("a", None),
    "0.bias": ("a",),
    "2.weight": ("b", "a"),
    "2.bias": ("b",),
    "4.weight": (None, "b"),
}


def network():
    module = randomise(mlp(3, 6, 6, 2))
    return module, PermutationSpec.from_table(TABLE, module.state_dict())


def randomly(spec, seed=0):
    return Permutation.random(spec, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "spec",
    [nested_spec(), grouped_spec(), blocks_spec()],
    ids=["nested", "grouped", "blocks"],
)
def test_pinned_tensor_never_moves(spec):
    for name in spec.tensors:
        pinned = pin_tensor(spec, name)
        state = random_state(spec)
        new = randomly(pinned, 1).apply(state)
        assert torch.equal(new[name], state[name]) and name not in pinned.maps
        assert {p.reason for p in pinned.pinned} <= {BY_USER}
    with pytest.raises(SpecError, match="no tensor"):
        pin_tensor(spec, "nothing")


def test_pin_tensor_of_a_network_stays_exact():
    module, spec = network()
    pinned = pin_tensor(spec, "0.bias")
    assert list(pinned.groups) == ["b"]
    assert (
        check_equivalence(module, randomly(pinned), torch.randn(4, 3)) < 1e-12
    )
    assert "pinned by the user" in pinned.explain("0.bias")


def test_pin_alias_pins_its_origin():
    weight = torch.zeros(2, 3)
    spec = PermutationSpec.from_table(
        {"a": (None, "h"), "c": ("h",)},
        {"a": weight, "b": weight, "c": torch.zeros(3)},
    )
    assert not pin_tensor(spec, "b").groups


def test_tie_groups():
    module, spec = network()
    tied = tie_groups(spec, "a", "b")
    assert list(tied.groups) == [
        "a"
    ] and tied.log10_symmetries == pytest.approx(math.log10(720))
    p = randomly(tied)
    both = Permutation(spec, {"a": p["a"], "b": p["a"]}).apply(
        module.state_dict()
    )
    assert all(
        torch.equal(tensor, both[name])
        for name, tensor in p.apply(module.state_dict()).items()
    )
    assert check_equivalence(module, p, torch.randn(4, 3)) < 1e-12
    assert list(tie_groups(spec, "b", "a").groups) == ["b"]


def test_tie_carries_the_children_along():
    a, b = Group("a", 2), Group("b", 2)
    inner = Group("inner", 3, b)
    tensors = PermutationSpec.from_table({}, {"w": (6,), "v": (2,)}).tensors
    maps = {
        "w": AxisMap(
            "w",
            ((2, 3),),
            (Component("inner", (0, 1), torch.arange(6)[:, None]),),
        ),
        "v": AxisMap(
            "v", ((2,),), (Component("a", (0,), torch.arange(2)[:, None]),)
        ),
    }
    spec = PermutationSpec({"b": b, "inner": inner, "a": a}, tensors, maps)
    tied = tie_groups(spec, "a", "b")
    assert (
        list(tied.groups) == ["a", "inner"]
        and tied.groups["inner"].parent == a
    )
    new = Permutation(tied, {"a": torch.tensor([1, 0])}).apply(
        {"w": torch.arange(6), "v": torch.arange(2)}
    )
    assert new["w"].tolist() == [3, 4, 5, 0, 1, 2] and new["v"].tolist() == [
        1,
        0,
    ]


def test_tie_refuses_what_does_not_fit():
    spec = nested_spec()
    for first, second in [
        ("heads", "model"),
        ("model", "model"),
        ("heads", "value"),
    ]:
        with pytest.raises(SpecError, match="cannot be tied"):
            tie_groups(spec, first, second)
    with pytest.raises(SpecError, match="no group"):
        tie_groups(spec, "heads", "nobody")


def test_freed_group_is_a_claim_that_the_gate_judges():
    module, spec = network()
    less = pin_group(spec, "b")
    claim = free_group(
        less, "again", {"2.weight": 0, "2.bias": 0, "4.weight": 1}
    )
    assert {p.tensor for p in claim.pinned} == set()
    assert (
        check_equivalence(module, randomly(claim), torch.randn(4, 3)) < 1e-12
    )
    false = free_group(spec, "inputs", {"0.weight": 1})
    with pytest.raises(EquivalenceError, match="'inputs'"):
        check_equivalence(module, randomly(false), torch.randn(4, 3))


def test_free_both_axes_of_one_tensor():
    spec = PermutationSpec.from_table({}, {"w": (3, 3)})
    free = free_group(spec, "h", {"w": (0, 1)})
    assert free == PermutationSpec.from_table({"w": ("h", "h")}, {"w": (3, 3)})


@pytest.mark.parametrize(
    ("group", "axes", "message"),
    [
        ("model", {"scale": 0}, "has a group 'model' already"),
        ("new", {"nothing": 0}, "no tensor 'nothing'"),
        ("new", {"scale": 1}, "no dimension 1"),
        ("new", {"scale": 0}, "moved by another group"),
        ("new", {}, "at least one axis"),
    ],
)
def test_free_refuses_what_does_not_fit(group, axes, message):
    with pytest.raises(SpecError, match=message):
        free_group(nested_spec(), group, axes)


def test_free_refuses_two_sizes():
    spec = PermutationSpec.from_table({}, {"v": (2,), "w": (3,)})
    with pytest.raises(SpecError, match="has size 3, group 'h' has 2"):
        free_group(spec, "h", {"v": 0, "w": 0})


def test_activation_sites_follow_the_groups():
    module = randomise(mlp(3, 6, 6, 2))
    spec = infer_spec(module, torch.randn(2, 3))
    first, second = spec.groups
    assert set(pin_group(spec, first).activations) == {second}
    tied = tie_groups(spec, first, second)
    assert len(tied.activations[first]) == len(spec.activations[first]) + len(
        spec.activations[second]
    )
    assert {site.component.group for site in tied.activations[first]} == {
        first
    }
    attention = infer_spec(
        ModularAdditionTransformer(), modular_addition_tokens()[0][:5]
    )
    heads = next(g for g in attention.groups.values() if g.size == 4)
    pinned = pin_group(attention, heads.id)
    assert set(pinned.activations) <= set(pinned.groups)
    assert PermutationSpec.from_dict(pinned.to_dict()) == pinned
