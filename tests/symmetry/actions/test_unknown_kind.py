"""One dispatch for kinds: a sign action, known to the tests only, goes through everything without an edit elsewhere."""

import inspect
from dataclasses import replace

import hypothesis.strategies as st
import pytest
import torch
from helpers.signs import SignAction, SignStep, known_signs
from hypothesis import given, settings
from torch import nn

from lightning_rebasin import (
    Permutation,
    PermutationSpec,
    check_equivalence,
    match_weights,
)
from lightning_rebasin.errors import (
    ConfigurationError,
    EquivalenceError,
    PermutationError,
    SpecError,
    TransformError,
)
from lightning_rebasin.matching.steps.step import register_step
from lightning_rebasin.symmetry import Component, Group, Transform
from lightning_rebasin.symmetry.actions.action import register_action


@pytest.fixture(autouse=True)
def signs():
    with known_signs():
        yield


def tanh_network(seed=0, width=6):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(4, width),
        nn.Tanh(),
        nn.Linear(width, width),
        nn.Tanh(),
        nn.Linear(width, 3),
    )


def tanh_spec(net, *, nested, last="4.weight"):
    """Signs of both hidden layers, by themselves or inside a permutation of the units."""
    width = len(net[0].bias)
    table = {
        "0.weight": ("a", None), "0.bias": ("a",), "2.weight": ("b", "a"), "2.bias": ("b",), last: (None, "b")
    }  # fmt: skip
    plain = PermutationSpec.from_table(table, net.state_dict())
    if not nested:
        groups = {name: Group(name, width, kind="flip") for name in "ab"}
        return replace(plain, groups=groups)
    groups = dict(plain.groups)
    for name in "ab":
        groups[f"{name}/sign"] = Group(
            f"{name}/sign", 1, plain.groups[name], "flip"
        )
    maps = {}
    for name, axis_map in plain.maps.items():
        signed = [
            Component(f"{c.group}/sign", c.sites, c.index)
            for c in axis_map.components
        ]
        maps[name] = replace(axis_map, components=tuple(signed))
    return replace(plain, groups=groups, maps=maps)


X = torch.randn(20, 4, generator=torch.Generator().manual_seed(7))


def test_the_action_and_its_step_are_at_most_sixty_lines():
    assert (
        sum(
            len(inspect.getsource(cls).splitlines())
            for cls in (SignAction, SignStep)
        )
        <= 60
    )


@pytest.mark.parametrize("nested", [False, True])
def test_the_gate_proves_signs(nested):
    net = tanh_network()
    spec = tanh_spec(net, nested=nested)
    transform = Transform.random(spec, torch.Generator().manual_seed(1))
    assert not transform.is_identity
    assert not isinstance(transform, Permutation)
    assert check_equivalence(net, transform, X) < 1e-12


def test_the_gate_refuses_signs_of_relu_units_and_names_the_group():
    net = tanh_network()
    net[1] = nn.ReLU()
    spec = tanh_spec(net, nested=False)
    with pytest.raises(EquivalenceError, match="group 'a'"):
        check_equivalence(
            net, Transform.random(spec, torch.Generator().manual_seed(1)), X
        )


@pytest.mark.parametrize("nested", [False, True])
@settings(max_examples=20, deadline=None)
@given(seeds=st.tuples(*[st.integers(0, 2**31)] * 3))
def test_transforms_form_a_group_that_acts(nested, seeds):
    net = tanh_network()
    spec = tanh_spec(net, nested=nested)
    p, q, r = (
        Transform.random(spec, torch.Generator().manual_seed(seed))
        for seed in seeds
    )
    state = net.state_dict()
    assert p.compose(q).compose(r) == p.compose(q.compose(r))
    assert p.compose(p.inverse()).is_identity
    assert p.inverse().compose(p).is_identity
    both, one_by_one = p.compose(q).apply(state), p.apply(q.apply(state))
    assert all(torch.equal(both[name], one_by_one[name]) for name in state)
    back = p.inverse().apply(p.apply(state))
    assert all(torch.equal(back[name], state[name]) for name in state)


@pytest.mark.parametrize("nested", [False, True])
def test_files_hold_signs(nested, tmp_path):
    spec = tanh_spec(tanh_network(), nested=nested)
    transform = Transform.random(spec, torch.Generator().manual_seed(3))
    transform.save(tmp_path / "t.pt")
    assert Transform.load(tmp_path / "t.pt") == transform
    assert Transform.load(tmp_path / "t.pt", spec).spec is spec
    spec.save(tmp_path / "spec.json")
    assert PermutationSpec.load(tmp_path / "spec.json") == spec
    with pytest.raises(PermutationError, match="use Transform"):
        Permutation.load(tmp_path / "t.pt")


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_planted_elements_are_recovered_by_coordinate_descent(nested, seed):
    net = tanh_network(seed)
    spec = tanh_spec(net, nested=nested)
    planted = Transform.random(spec, torch.Generator().manual_seed(seed))
    found = match_weights(
        spec, net.state_dict(), planted.apply(net.state_dict()), restarts=8
    )
    assert found.transform == planted.inverse()
    assert found.objective == pytest.approx(found.norms[0] ** 2)
    with pytest.raises(PermutationError, match=r"match\.transform"):
        _ = found.permutation


def test_a_nested_sign_follows_its_unit():
    spec = tanh_spec(tanh_network(width=3), nested=True)
    ones = torch.ones(3, 1)
    p = Transform.of(spec, {"a": torch.tensor([1, 2, 0]), "a/sign": ones})
    q = Transform.of(spec, {"a/sign": torch.tensor([[-1.0], [1.0], [1.0]])})
    # q turns unit 0, which p then puts at place 2
    assert p.compose(q)["a/sign"].flatten().tolist() == [1.0, 1.0, -1.0]


def test_misuse_is_a_typed_error():
    spec = tanh_spec(tanh_network(), nested=False)
    with pytest.raises(TransformError, match="group 'a': signs must be"):
        Transform.of(spec, {"a": torch.zeros(6)})
    with pytest.raises(SpecError, match="'flip' has an action already"):
        register_action(SignAction())
    with pytest.raises(
        ConfigurationError, match="'flip' has a matching step already"
    ):
        register_step(SignStep())
    unknown = replace(
        spec, groups={**spec.groups, "a": Group("a", 6, kind="rotation")}
    )
    with pytest.raises(
        TransformError,
        match="kind 'rotation', for which no action is registered",
    ):
        Transform.identity(unknown)
    inside = Group("in", 1, spec.groups["a"], "flip")
    with pytest.raises(
        TransformError, match="lies inside 'a', which is not a permutation"
    ):
        Transform.identity(replace(spec, groups={**spec.groups, "in": inside}))
