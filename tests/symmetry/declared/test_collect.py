"""Asking submodules: their names, several of them, and answers that are no declarations."""

from __future__ import annotations

import pytest
import torch
from helpers.mixtures import Bumps
from torch import Tensor, nn

from lightning_rebasin import PermutationSpec, infer_spec
from lightning_rebasin.errors import SpecError
from lightning_rebasin.symmetry.declared.collect import declarations

ALL = frozenset(("permutation", "sign"))


def test_names_are_those_of_the_network():
    net = nn.Sequential(Bumps(3, 2, 4), nn.Sequential(Bumps(5, 4, 2)))
    found = declarations(net, ALL)
    assert [d.path for d in found] == ["0", "1.0"]
    spec = infer_spec(net, torch.randn(9, 2), kinds=ALL)
    inside = {
        g.id: g.parent.id for g in spec.groups.values() if g.parent is not None
    }
    assert inside["0.sign"] == "0.component"
    assert inside["1.0.sign"] == "1.0.component"


def test_who_declares_speaks_for_everything_inside():
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Bumps(3, 2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

        def symmetry_spec(self) -> PermutationSpec:
            return PermutationSpec.from_table(
                {
                    "inner.direction": ("k", None),
                    "inner.height": (None, "k"),
                },
                self.state_dict(),
            )

    (found,) = declarations(nn.Sequential(Pair()), ALL)
    assert found.path == "0"
    assert list(found.spec.groups) == ["k"]


def test_kinds_that_were_not_asked_for_move_with_their_units():
    (found,) = declarations(Bumps(3, 2, 4), frozenset(("permutation",)))
    assert list(found.spec.groups) == ["component"]
    assert found.spec.tensors_of("component") == ("direction", "height")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"a": 1}, "must return a PermutationSpec, not dict"),
        (
            PermutationSpec.from_table({}, {"other": (2,)}),
            "does not fit its module",
        ),
    ],
)
def test_answers_that_are_no_declarations(answer, message):
    class Odd(nn.Linear):
        def symmetry_spec(self) -> object:
            return answer

    with pytest.raises(SpecError, match=message):
        infer_spec(nn.Sequential(Odd(2, 3)), torch.randn(4, 2))


def test_kinds_without_an_action_are_refused():
    class Odd(Bumps):
        def symmetry_spec(self) -> PermutationSpec:
            from lightning_rebasin import declare, on
            from lightning_rebasin.symmetry import Group

            mirror = Group("mirror", len(self.direction), None, "mirror")
            return declare(self, {"direction": [on(mirror, 0)]})

    with pytest.raises(SpecError, match="names the kind 'mirror'"):
        infer_spec(Odd(3, 2, 2), torch.randn(4, 2))
