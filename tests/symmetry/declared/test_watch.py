"""Addresses at which a declared symmetry changes what is seen are dropped."""

from __future__ import annotations

import torch
from helpers.mixtures import Bumps
from helpers.soft_trees import ensemble, examples
from torch import nn

from lightning_rebasin import infer_spec, match_activations
from lightning_rebasin.symmetry import Transform
from lightning_rebasin.trees import SoftTreeEnsemble


class Undeclared(nn.Module):
    """The same trees in a module that says nothing."""

    def __init__(self, model: SoftTreeEnsemble) -> None:
        super().__init__()
        self.shape = model.shape
        self.weight, self.bias = model.weight, model.bias
        self.leaves = model.leaves

    tree_outputs = SoftTreeEnsemble.tree_outputs
    leaf_shares = SoftTreeEnsemble.leaf_shares
    forward = SoftTreeEnsemble.forward


def test_leaves_are_no_samples_where_flips_move_them():
    model = ensemble("non_oblivious", 3)
    # the trace offers the shares of the leaves, one sample each, beside what each tree says
    traced = infer_spec(Undeclared(model), examples())
    (group,) = traced.activations
    assert len(traced.activations[group]) == 2
    spec = infer_spec(model, examples(), kinds="all")
    assert len(spec.activations["trees"]) == 1
    assert spec.activations["trees/flips"] == ()
    # also where only the order is asked for
    order = infer_spec(model, examples())
    assert order.activations.keys() == {"trees"}
    assert len(order.activations["trees"]) == 1


def test_units_behind_an_even_function_are_seen_and_their_signs_are_not():
    torch.manual_seed(0)
    net, other = Bumps(6, 4, 3), Bumps(6, 4, 3)
    spec = infer_spec(net, examples().float(), kinds=("permutation", "sign"))
    assert spec.activations["component"]
    assert spec.activations["sign"] == ()
    planted = Transform.random(spec, torch.Generator().manual_seed(2))
    other.load_state_dict(planted.apply(net.state_dict()))
    found = match_activations(spec, net, other, [examples(200).float()])
    assert found.transform == planted.inverse()
