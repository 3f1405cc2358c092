"""Declared symmetries are proved, and wrong ones are caught."""

from __future__ import annotations

import warnings

import pytest
import torch
from helpers.mixtures import Bumps, Incomplete, WrongOrder, WrongSign
from helpers.soft_trees import examples
from torch import Tensor, nn

from lightning_rebasin import (
    PermutationSpec,
    check_equivalence,
    declare,
    infer_spec,
    match_weights,
    on,
)
from lightning_rebasin.errors import DeclarationWarning, SpecError
from lightning_rebasin.symmetry import Group, Importance, Transform

KINDS = ("permutation", "sign")


def made(kind: type[Bumps], seed: int = 0) -> Bumps:
    torch.manual_seed(seed)
    return kind(6, 4, 3)


def element(spec: PermutationSpec, seed: int = 0) -> Transform:
    return Transform.random(spec, torch.Generator().manual_seed(seed))


def test_a_sign_that_no_trace_can_see_is_used():
    net = made(Bumps)
    spec = infer_spec(net, examples().float(), kinds=KINDS)
    assert {g.kind for g in spec.groups.values()} == {"permutation", "sign"}
    assert check_equivalence(net, element(spec), examples()) < 1e-12
    a = net.state_dict()
    planted = element(spec, 3)
    found = match_weights(spec, a, planted.apply(a))
    assert found.transform == planted.inverse()


def test_a_wrong_sign_is_pinned_with_the_reason():
    net = made(WrongSign)
    with pytest.warns(DeclarationWarning, match="'sign': one of its elements"):
        spec = infer_spec(net, examples().float(), kinds=KINDS)
    # the order of the components is right all the same
    assert [g.kind for g in spec.groups.values()] == ["permutation"]
    assert "changes the function" in spec.notes[-1]
    assert check_equivalence(net, element(spec), examples()) < 1e-12


@pytest.mark.filterwarnings("ignore::lightning_rebasin.errors.RebasinWarning")
def test_a_wrong_order_falls_back_to_what_was_inferred():
    net = made(WrongOrder)
    spec = infer_spec(net, examples().float())
    # the trace knows that heights move with their directions
    assert [g.size for g in spec.groups.values()] == [6]
    (name,) = spec.groups
    assert spec.tensors_of(name) == ("direction", "height")
    assert "component" in spec.notes[-1]
    assert check_equivalence(net, element(spec), examples()) < 1e-12


def test_what_a_declaration_forgets_the_trace_remembers():
    net = made(Incomplete)
    spec = infer_spec(net, examples().float(), kinds=KINDS)
    assert spec.tensors_of("component") == ("height",)
    assert spec.tensors_of("sign") == ("direction",)
    assert check_equivalence(net, element(spec), examples()) < 1e-12


@pytest.mark.parametrize("kind", [WrongSign, WrongOrder])
def test_inputs_of_zeros_hide_nothing(kind):
    with pytest.warns(DeclarationWarning, match="changes the function"):
        infer_spec(made(kind), torch.zeros(5, 4), kinds=KINDS)


def test_what_the_example_cannot_show_is_not_believed():
    class Gated(Bumps):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 0 + x[:, :1]

    with pytest.warns(DeclarationWarning, match="does not show whether"):
        spec = infer_spec(made(Gated), examples().float(), kinds=("sign",))
    assert "sign" not in {g.kind for g in spec.groups.values()}


def test_units_that_change_places_must_count_alike():
    class Lopsided(Bumps):
        def symmetry_spec(self) -> PermutationSpec:
            component = Group("component", len(self.direction))
            count = tuple(float(i + 1) for i in range(len(self.direction)))
            return declare(
                self,
                {
                    "direction": [on(component, 0)],
                    "height": [on(component, 1)],
                },
                importance={"direction": Importance(0, count)},
            )

    with pytest.raises(SpecError, match="of different importance"):
        infer_spec(made(Lopsided), examples().float())


def test_networks_without_declarations_are_left_alone():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        spec = infer_spec(nn.Linear(4, 3), torch.zeros(2, 4))
    assert not spec.groups
    assert not spec.notes
