"""Soft trees the slow way: one tree, one leaf at a time, as the formulas are written."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_rebasin.trees import SoftTreeEnsemble

KINDS = (
    "non_oblivious",
    "oblivious",
    "decision_list",
    "modified_decision_list",
)


def ensemble(
    kind: str, depth: int, trees: int = 5, seed: int = 0, outputs: int = 3
) -> SoftTreeEnsemble:
    """An ensemble in float64 with four features, its weights larger than fresh ones so that rules decide."""
    torch.manual_seed(seed)
    made = SoftTreeEnsemble(kind, depth, trees, 4, outputs).double()
    with torch.no_grad():
        made.weight.mul_(3)
    return made


def examples(count: int = 20) -> Tensor:
    """Standard normal rows."""
    generator = torch.Generator().manual_seed(7)
    return torch.randn(count, 4, generator=generator, dtype=torch.float64)


def paths(kind: str, depth: int) -> list[list[tuple[int, bool]]]:
    """For each leaf the rules on its way, and whether it lies to their left."""
    if kind in ("decision_list", "modified_decision_list"):
        found = []
        for leaf in range(depth):
            passed = [(rule, False) for rule in range(leaf)]
            found.append([*passed, (leaf, True)])
        last = [(rule, False) for rule in range(depth)]
        return [*found, last] if kind == "decision_list" else found
    found = []
    for leaf in range(2**depth):
        node, path = 0, []
        for level in range(depth):
            left = not (leaf >> (depth - 1 - level)) & 1
            path.append((level if kind == "oblivious" else node, left))
            node = 2 * node + (1 if left else 2)
        found.append(path)
    return found


def by_loops(model: SoftTreeEnsemble, x: Tensor) -> Tensor:
    """``Σ_m Σ_ℓ π_mℓ Π_n σ(…)``, tree by tree and leaf by leaf."""
    ways = paths(model.kind, model.shape.depth)
    total = x.new_zeros(len(x), model.leaves.shape[-1])
    for weight, bias, leaves in zip(
        model.weight, model.bias, model.leaves, strict=True
    ):
        rules = torch.sigmoid(x @ weight.T + bias)
        for value, way in zip(leaves, ways, strict=True):
            share = x.new_ones(len(x))
            for rule, left in way:
                kept = rules[:, rule]
                share = share * (kept if left else 1 - kept)
            total = total + share[:, None] * value
    return total
