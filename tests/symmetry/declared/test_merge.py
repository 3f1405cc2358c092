"""Declared groups among inferred ones: neighbours stay, what reaches beyond is taken over or pinned."""

from __future__ import annotations

import pytest
import torch
from helpers.soft_trees import examples
from torch import Tensor, nn

from lightning_rebasin import (
    PermutationSpec,
    check_equivalence,
    infer_spec,
    match_weights,
)
from lightning_rebasin.symmetry import AxisMap, Component, Transform
from lightning_rebasin.symmetry.declared.merge import overlay
from lightning_rebasin.trees import SoftTreeEnsemble

KINDS = ("permutation", "flips", "splits")


def proved(net: nn.Module, spec: PermutationSpec, seed: int = 0) -> float:
    transform = Transform.random(spec, torch.Generator().manual_seed(seed))
    return check_equivalence(net, transform, examples())


def stack() -> nn.Sequential:
    """Units, trees, units, trees of another kind."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 6),
        nn.ReLU(),
        SoftTreeEnsemble("non_oblivious", 2, 5, 6, 7),
        nn.ReLU(),
        SoftTreeEnsemble("oblivious", 3, 4, 7, 2),
    )


def test_layers_around_and_several_declaring_modules():
    net = stack()
    spec = infer_spec(net, examples().float(), kinds=KINDS)
    sizes = {g.id: g.shape for g in spec.groups.values()}
    assert sizes == {
        "0": (6,),
        "2#2": (7,),
        "2.trees": (5,),
        "2.trees/flips": (5, 3),
        "4.trees": (4,),
        "4.trees/splits": (4, 3),
    }
    # features of the rules move with the units before, values of the leaves with the units behind
    assert spec.tensors_of("0") == ("0.weight", "0.bias", "2.weight")
    assert spec.tensors_of("2#2") == ("2.leaves", "4.weight")
    for seed in range(3):
        assert proved(net, spec, seed) < 1e-12


def test_a_planted_element_of_everything_is_found():
    net = stack()
    spec = infer_spec(net, examples().float(), kinds=KINDS)
    a = net.state_dict()
    planted = Transform.random(spec, torch.Generator().manual_seed(1))
    found = match_weights(spec, a, planted.apply(a), restarts=8)
    assert found.transform == planted.inverse()


def test_what_is_said_about_replaced_groups_goes_with_them():
    net = stack()
    spec = infer_spec(net, examples().float(), kinds="all")
    assert set(spec.limits) <= set(spec.groups)
    assert "2.trees/flips" in str(spec)
    assert PermutationSpec.from_dict(spec.to_dict()) == spec
    assert proved(net, spec) < 1e-12


class GatedTrees(nn.Module):
    """A gate outside the ensemble, with one number for each of its trees."""

    def __init__(self) -> None:
        super().__init__()
        self.ensemble = SoftTreeEnsemble("oblivious", 2, 5, 4, 3)
        self.gate = nn.Parameter(torch.randn(5))

    def forward(self, x: Tensor) -> Tensor:
        outputs = self.ensemble.tree_outputs(x)
        return (outputs * self.gate[:, None, None]).sum(0).T


def test_what_moves_with_the_trees_outside_is_taken_over():
    torch.manual_seed(0)
    net = GatedTrees()
    spec = infer_spec(net, examples().float(), kinds=KINDS)
    assert "gate" in spec.tensors_of("ensemble.trees")
    assert list(spec.groups) == ["ensemble.trees", "ensemble.trees/splits"]
    assert proved(net, spec) < 1e-12


class Ordered(nn.Module):
    """Trees whose order matters outside: the declaration of the ensemble is wrong here."""

    def __init__(self) -> None:
        super().__init__()
        self.ensemble = SoftTreeEnsemble("oblivious", 2, 5, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        outputs = self.ensemble.tree_outputs(x)
        order = torch.arange(5.0, dtype=x.dtype)[:, None, None]
        return (outputs * order).sum(0).T


@pytest.mark.filterwarnings("ignore::lightning_rebasin.errors.RebasinWarning")
def test_what_is_wrong_in_this_place_is_pinned_and_the_rest_stays():
    torch.manual_seed(0)
    net = Ordered()
    spec = infer_spec(net, examples().float(), kinds=KINDS)
    # the trees cannot change places, but each may still be split in another order
    kinds = [g.kind for g in spec.groups.values()]
    assert kinds == ["splits"] * 5
    assert "'trees'" in spec.notes[-1]
    assert proved(net, spec) < 1e-12


def test_shared_modules_and_tied_weights_are_mapped_once():
    torch.manual_seed(0)
    part = SoftTreeEnsemble("non_oblivious", 2, 5, 4, 4)
    net = nn.Sequential(part, part)
    spec = infer_spec(net, examples().float(), kinds=KINDS)
    assert spec.aliases["1.weight"] == "0.weight"
    assert list(spec.groups) == ["0.trees", "0.trees/flips"]
    assert proved(net, spec) < 1e-12


def test_maps_are_laid_over_each_other_by_dimension():
    ours = AxisMap(
        "w",
        ((6,), (2, 3)),
        (
            Component("rows", (0,), torch.arange(6)[:, None]),
            Component("h", (1,), torch.arange(2)[:, None]),
        ),
    )
    theirs = AxisMap(
        "w", ((2, 3), (6,)), (Component("d", (0,), torch.arange(2)[:, None]),)
    )
    both = overlay(ours, theirs)
    assert both.sites == ((2, 3), (2, 3))
    assert [(c.group, c.sites) for c in both.components] == [
        ("h", (2,)),
        ("d", (0,)),
    ]
