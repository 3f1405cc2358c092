"""A kind whose readers undo what its writers do: positive scales of ReLU units, written here only.

``relu(s·x) = s·relu(x)`` for ``s > 0``, so hidden units may be multiplied by ``s`` (weight rows and bias of one layer)
if the next layer divides its columns by it.  The components of the second kind have ``power=-1``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn

from lightning_rebasin import PermutationSpec, check_equivalence
from lightning_rebasin.errors import EquivalenceError, TransformError
from lightning_rebasin.symmetry import (
    Component,
    Group,
    Transform,
    measure_equivalence,
)
from lightning_rebasin.symmetry.actions.action import Action, registered_action
from lightning_rebasin.symmetry.proof import sandbox
from lightning_rebasin.symmetry.proof.gate import check_in_place


class ScaleAction(Action):
    """Positive factors, one per unit."""

    kind = "stretch"
    cost = "diagonal"

    def identity(self, group: Group) -> Tensor:
        return torch.ones(group.shape, dtype=torch.float64)

    def random(self, group: Group, generator: torch.Generator) -> Tensor:
        """Powers of two other than 1, so that products are exact in floating point."""
        size = torch.randint(1, 4, group.shape, generator=generator)
        sign = torch.randint(2, group.shape, generator=generator) * 2 - 1
        return 2.0 ** (sign * size).double()

    def check(self, group: Group, element: Tensor) -> Tensor:
        fits = element.shape == group.shape and element.is_floating_point()
        if not fits or not bool(((element > 0) & element.isfinite()).all()):
            raise TransformError(
                f"group {group.id!r}: scales must be positive"
            )
        return element.detach().cpu().double().clone()

    def compose(self, group: Group, after: Tensor, before: Tensor) -> Tensor:
        return after * before

    def inverse(self, group: Group, element: Tensor) -> Tensor:
        return 1 / element

    def apply(
        self, group: Group, element: Tensor, units: Tensor, power: int
    ) -> Tensor:
        factor = element.reshape(group.instances, group.size, 1) ** power
        return units * factor.to(units)

    def distance(self, group: Group, element: Tensor) -> float:
        return float((element != 1).double().mean())


@pytest.fixture(autouse=True, scope="module")
def _scales() -> Iterator[None]:
    with registered_action(ScaleAction()):
        yield


def relu_network(widths: tuple[int, int] = (6, 5)) -> nn.Sequential:
    torch.manual_seed(0)
    first, second = widths
    net = nn.Sequential(
        nn.Linear(4, first),
        nn.ReLU(),
        nn.Linear(first, second),
        nn.ReLU(),
        nn.Linear(second, 3),
    )
    return net.double()


#: Which tensors read the units of a group: they must undo the change.
READERS = {("2.weight", "a"), ("4.weight", "b")}


def scale_spec(
    net: nn.Sequential, *, power: int = -1, nested: bool = False
) -> PermutationSpec:
    """Scales of both hidden layers, by themselves or inside a permutation of the units.

    Args:
        net: The network.
        power: What the readers do; −1 is right.
        nested: Whether units are permuted too.
    """
    table = {
        "0.weight": ("a", None),
        "0.bias": ("a",),
        "2.weight": ("b", "a"),
        "2.bias": ("b",),
        "4.weight": (None, "b"),
    }
    plain = PermutationSpec.from_table(table, net.state_dict())
    groups = dict(plain.groups) if nested else {}
    names = {}
    for name, group in plain.groups.items():
        names[name] = f"{name}/scale" if nested else name
        groups[names[name]] = (
            Group(names[name], 1, group, "stretch")
            if nested
            else Group(name, group.size, kind="stretch")
        )
    maps = {}
    for tensor, axis_map in plain.maps.items():
        components = []
        for c in axis_map.components:
            own = power if (tensor, c.group) in READERS else 1
            components.append(Component(names[c.group], c.sites, c.index, own))
        maps[tensor] = replace(axis_map, components=tuple(components))
    return replace(plain, groups=groups, maps=maps)


#: None of these is a power of two, so that multiplying and dividing round.
A = torch.tensor([0.3, 1.7, 5.0, 0.9, 1.1, 3.0], dtype=torch.float64)
B = torch.tensor([2.3, 0.7, 1.3, 0.1, 7.0], dtype=torch.float64)
X = torch.randn(
    20, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(7)
)


def run(net: nn.Sequential, transform: Transform) -> Tensor:
    """The outputs with transformed weights."""
    other = copy.deepcopy(net)
    other.load_state_dict(transform.apply(net.state_dict()))
    with torch.no_grad():
        output: Tensor = other(X)
    return output


def test_writers_are_multiplied_and_readers_divided() -> None:
    net = relu_network()
    old = net.state_dict()
    new = Transform.of(scale_spec(net), {"a": A, "b": B}).apply(old)
    close = torch.testing.assert_close
    close(new["0.weight"], A[:, None] * old["0.weight"])
    close(new["0.bias"], A * old["0.bias"])
    close(new["2.weight"], B[:, None] * old["2.weight"] / A)
    close(new["2.bias"], B * old["2.bias"])
    close(new["4.weight"], old["4.weight"] / B)
    assert torch.equal(new["4.bias"], old["4.bias"])


@pytest.mark.parametrize("group", ["a", "b"])
def test_the_function_stays_only_if_readers_undo_the_scale(
    group: str,
) -> None:
    net = relu_network()
    scales = {"a": {"a": A}, "b": {"b": B}}[group]
    with torch.no_grad():
        expected = net(X)
    right = run(net, Transform.of(scale_spec(net), scales))
    torch.testing.assert_close(right, expected, rtol=1e-13, atol=1e-13)
    wrong = run(net, Transform.of(scale_spec(net, power=1), scales))
    assert float((wrong - expected).abs().max()) > 0.01


@pytest.mark.parametrize("nested", [False, True])
def test_the_gate_proves_scales_and_its_control_sees(nested: bool) -> None:
    net = relu_network()
    spec = scale_spec(net, nested=nested)
    transform = Transform.random(spec, torch.Generator().manual_seed(1))
    assert not transform.is_identity
    result = measure_equivalence(net, transform, X)
    assert result.error < 1e-12
    assert result.sees
    assert check_equivalence(net, transform, X) == result.error


@pytest.mark.parametrize("group", ["a", "b"])
def test_the_gate_refuses_readers_that_multiply(group: str) -> None:
    net = relu_network()
    wrong = scale_spec(net, power=1)
    scales = {"a": {"a": A}, "b": {"b": B}}[group]
    with pytest.raises(EquivalenceError, match=f"group '{group}'") as caught:
        check_equivalence(net, Transform.of(wrong, scales), X)
    # Values that are scaled are no rearrangement, so no submodule can be blamed.
    assert "submodule" not in str(caught.value)


def test_weights_come_back_bit_for_bit_although_scales_round(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sandbox, "LARGE", 0)
    net = relu_network()
    kept = copy.deepcopy(net.state_dict())
    transform = Transform.of(scale_spec(net), {"a": A, "b": B})
    back = transform.inverse().apply(transform.apply(kept))
    assert not all(torch.equal(back[name], kept[name]) for name in kept)
    assert not transform.exact
    assert check_in_place(net, transform, X) < 1e-12
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, kept[name])


seeds = st.integers(0, 2**31)


@pytest.mark.parametrize("nested", [False, True])
@settings(max_examples=25, deadline=None)
@given(s1=seeds, s2=seeds, s3=seeds)
def test_scales_form_a_group_that_acts(
    nested: bool, s1: int, s2: int, s3: int
) -> None:
    net = relu_network((3, 2))
    spec = scale_spec(net, nested=nested)
    p, q, r = (
        Transform.random(spec, torch.Generator().manual_seed(seed))
        for seed in (s1, s2, s3)
    )
    state = net.state_dict()
    assert p.compose(q).compose(r) == p.compose(q.compose(r))
    assert p.compose(q).inverse() == q.inverse().compose(p.inverse())
    assert p.compose(p.inverse()).is_identity
    assert p.inverse().compose(p).is_identity
    both, one_by_one = p.compose(q).apply(state), p.apply(q.apply(state))
    back = p.inverse().apply(p.apply(state))
    for name, tensor in state.items():
        assert torch.equal(both[name], one_by_one[name])
        assert torch.equal(back[name], tensor)


def test_scales_inside_a_permutation_act_in_the_new_order() -> None:
    net = relu_network((3, 2))
    spec = scale_spec(net, nested=True)
    order, scale = torch.tensor([2, 0, 1]), A[:3]
    p = Transform.of(spec, {"a": order, "a/scale": scale[:, None]})
    old = net.state_dict()
    new = p.apply(old)
    for i in range(3):
        before = int(order[i])
        assert new["0.bias"][i] == scale[i] * old["0.bias"][before]
        torch.testing.assert_close(
            new["2.weight"][:, i], old["2.weight"][:, before] / scale[i]
        )
    # A scale keeps the order inside each of its instances.
    assert torch.equal(p.flat("a/scale"), order)


def test_files_keep_the_power(tmp_path: Path) -> None:
    net = relu_network()
    spec = scale_spec(net)
    spec.save(tmp_path / "spec.json")
    loaded = PermutationSpec.load(tmp_path / "spec.json")
    assert loaded == spec
    assert loaded != scale_spec(net, power=1)
    transform = Transform.of(spec, {"a": A, "b": B})
    transform.save(tmp_path / "t.pt")
    again = Transform.load(tmp_path / "t.pt", loaded)
    for name, tensor in transform.apply(net.state_dict()).items():
        assert torch.equal(again.apply(net.state_dict())[name], tensor)


@pytest.mark.parametrize(
    "scale",
    [
        torch.zeros(6),
        -torch.ones(6),
        torch.full((6,), torch.inf),
        torch.ones(5),
        torch.ones(6, dtype=torch.long),
    ],
)
def test_what_is_no_scale_is_refused(scale: Tensor) -> None:
    spec = scale_spec(relu_network())
    with pytest.raises(TransformError, match="group 'a': scales must be"):
        Transform.of(spec, {"a": scale})


def test_an_unknown_group_is_refused_as_a_transform() -> None:
    spec = scale_spec(relu_network())
    with pytest.raises(TransformError, match="no group 'c'") as caught:
        Transform.of(spec, {"c": torch.ones(2)})
    assert type(caught.value) is TransformError
