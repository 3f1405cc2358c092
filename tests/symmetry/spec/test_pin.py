"""Pinning takes symmetries away exactly where it says, and leaves the old spec alone."""

import math

import pytest
import torch
from helpers.models import (
    mlp,
    randomise,
)
from helpers.specs import nested_spec, random_state

from lightning_rebasin.errors import SpecError
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
    pin_group,
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


def test_pin_group_keeps_the_others_and_says_why():
    module, spec = network()
    pinned = pin_group(spec, "a", "layer is frozen")
    assert list(pinned.groups) == ["b"] and list(spec.groups) == ["a", "b"]
    assert {(p.tensor, p.dim, p.pinned, p.reason) for p in pinned.pinned} == {
        ("0.weight", 0, 6, "layer is frozen"),
        ("0.bias", 0, 6, "layer is frozen"),
        ("2.weight", 1, 6, "layer is frozen"),
    }
    p = randomly(pinned)
    assert torch.equal(
        p.apply(module.state_dict())["0.weight"],
        module.state_dict()["0.weight"],
    )
    assert check_equivalence(module, p, torch.randn(4, 3)) < 1e-12
    with pytest.raises(SpecError, match="no group 'z'; it has 'a', 'b'"):
        pin_group(spec, "z")


def test_pin_parent_splits_its_children():
    spec = nested_spec(3, 4, 5)
    pinned = pin_group(spec, "heads")
    assert {g.id: g.shape for g in pinned.groups.values()} == {
        "value[0]": (4,),
        "value[1]": (4,),
        "value[2]": (4,),
        "model": (5,),
    }
    assert pinned.log10_symmetries == pytest.approx(
        spec.log10_symmetries - math.log10(6)
    )
    order = torch.tensor([3, 1, 0, 2])
    state = random_state(spec)
    new = Permutation(pinned, {"value[1]": order}).apply(state)
    within = Permutation(
        spec, {"value": torch.stack([torch.arange(4), order, torch.arange(4)])}
    ).apply(state)
    assert all(torch.equal(new[name], within[name]) for name in state)


def test_pin_child_leaves_its_parent_acting_where_the_child_did():
    """Regression: the child's components carry the parent's moves, so they must not vanish with the child."""
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    module = randomise(torch.nn.MultiheadAttention(8, 2, batch_first=True))
    spec = infer_spec(module, x, x, x)
    inner = [g.id for g in spec.groups.values() if g.parent is not None]
    heads = next(g.id for g in spec.groups.values() if g.parent is None)
    assert len(inner) == 2
    for name in inner:
        pinned = pin_group(spec, name)
        assert check_equivalence(module, randomly(pinned), x, x, x) < 1e-12
        spec_both = pin_group(
            pinned, next(other for other in inner if other != name)
        )
        swap = Permutation(spec_both, {heads: torch.tensor([1, 0])})
        assert check_equivalence(module, swap, x, x, x) < 1e-12
        assert not torch.equal(
            swap.apply(module.state_dict())["in_proj_weight"],
            module.in_proj_weight,
        )


def test_pin_in_the_middle_of_three_levels():
    a = Group("a", 2)
    b = Group("b", 3, a)
    c = Group("c", 2, b)
    axis_map = AxisMap(
        "w",
        ((2, 3, 2),),
        (Component("c", (0, 1, 2), torch.arange(12)[:, None]),),
    )
    spec = PermutationSpec.from_table({}, {"w": (12,)})
    spec = PermutationSpec(
        {"a": a, "b": b, "c": c}, spec.tensors, {"w": axis_map}
    )
    pinned = pin_group(spec, "b")
    assert {
        g.id: (g.shape, g.parent and g.parent.id)
        for g in pinned.groups.values()
    } == {
        "a": ((2,), None),
        "c[0]": ((2, 2), "a"),
        "c[1]": ((2, 2), "a"),
        "c[2]": ((2, 2), "a"),
    }
    state = {"w": torch.arange(12)}
    swap = {"a": torch.tensor([1, 0]), "c[2]": torch.tensor([[1, 0], [0, 1]])}
    assert Permutation(pinned, swap).apply(state)["w"].tolist() == [
        6,
        7,
        8,
        9,
        11,
        10,
        0,
        1,
        2,
        3,
        4,
        5,
    ]
    outer = pin_group(spec, "a")
    assert {
        g.id: (g.shape, g.parent and g.parent.id)
        for g in outer.groups.values()
    } == {
        "b[0]": ((3,), None),
        "b[1]": ((3,), None),
        "c[0]": ((3, 2), "b[0]"),
        "c[1]": ((3, 2), "b[1]"),
    }
    order = {
        "b[1]": torch.tensor([2, 0, 1]),
        "c[1]": torch.tensor([[1, 0], [0, 1], [0, 1]]),
    }
    assert Permutation(outer, order).apply(state)["w"].tolist() == [
        0,
        1,
        2,
        3,
        4,
        5,
        11,
        10,
        6,
        7,
        8,
        9,
    ]
