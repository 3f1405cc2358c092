"""What each kind of soft tree may change without changing its function, declared for :func:`infer_spec`.

========================  ==============  ================================  ==================
kind                      order of trees  inside each tree                  elements per tree
========================  ==============  ================================  ==================
non-oblivious             yes             flips of every subtree            2^(2^D − 1)
oblivious                 yes             order and sign of the rules       2^D · D!
decision list             yes             its last rule, negated            2
modified decision list    yes             nothing                           1
========================  ==============  ================================  ==================

A rule near the root decides about more leaves than one far from it, so in the inner products of weight matching a rule
counts as often as there are leaves below it (parameters are multiplied by the root of that number on both sides).

Source: Kanoh and Sugiyama, "Linear Mode Connectivity in Differentiable Tree Ensembles", ICLR 2025.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_rebasin.symmetry.declared.declare import Place, declare, on
from lightning_rebasin.symmetry.spec.spec import PermutationSpec
from lightning_rebasin.symmetry.spec.values import Group, Importance
from lightning_rebasin.trees.shapes import TreeShape

Places = dict[str, list[Place]]


def tree_symmetries(
    module: nn.Module, kind: str, shape: TreeShape
) -> PermutationSpec:
    """The declaration of an ensemble with tensors ``weight``, ``bias`` and ``leaves``, trees along dimension 0.

    Args:
        module: The ensemble.
        kind: Kind of its trees.
        shape: Their shape.
    """
    leaves = module.get_parameter("leaves")
    trees = Group("trees", len(leaves))
    if kind == "non_oblivious":
        flips = Group("trees/flips", shape.rules, trees, "flips")
        places = _everywhere(flips)
    elif kind == "oblivious":
        splits = Group("trees/splits", shape.rules, trees, "splits")
        places = _everywhere(splits)
    elif kind == "decision_list":
        places = _at_the_end(trees, shape)
    else:
        places = {
            name: [on(trees, 0)] for name in ("weight", "bias", "leaves")
        }
    below = Importance(1, tuple(shape.leaves_below().tolist()))
    return declare(module, places, importance={"weight": below, "bias": below})


def _everywhere(inside: Group) -> Places:
    """Every rule and every leaf belongs to the group inside its tree."""
    names = ("weight", "bias", "leaves")
    return {name: [on(inside, 0, 1)] for name in names}


def _at_the_end(trees: Group, shape: TreeShape) -> Places:
    """The last rule of a list and its two leaves are a tree of depth 1; what comes before only moves with its tree."""
    end = Group("trees/end", 1, trees, "flips")
    rules = _positions(trees.size, shape.rules)
    leaves = _positions(trees.size, shape.leaves)
    first_rules, last_rule = rules[:, :-1], rules[:, -1:]
    first_leaves, last_leaves = leaves[:, :-2], leaves[:, -2:]
    places: Places = {}
    for name in ("weight", "bias"):
        places[name] = [on(end, 0, 1, positions=last_rule)]
    # The two last leaves of each tree are two units of the end: one row each.
    places["leaves"] = [on(end, 0, 1, positions=last_leaves.reshape(-1, 1))]
    if shape.depth > 1:
        for name in ("weight", "bias"):
            places[name].append(on(trees, 0, 1, positions=first_rules))
        places["leaves"].append(on(trees, 0, 1, positions=first_leaves))
    return places


def _positions(trees: int, entries: int) -> Tensor:
    """Flat positions ``(trees, entries)`` over the first two dimensions."""
    return torch.arange(trees * entries).reshape(trees, entries)
