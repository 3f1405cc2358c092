"""The best elements of a whole family, whatever kinds its groups are of.

As in :mod:`.permutation` from the inside out: every pair of parent members has a problem of its own, whose value joins
the parent's cost.  A sign inside every hidden unit, for example, is decided for each pair (i, j) of units by the sign
of ⟨A_i, B_j⟩; its value |⟨A_i, B_j⟩| is the cost of the assignment of units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lightning_rebasin.assignment.solve import Solver
from lightning_rebasin.matching.steps.step import step_of
from lightning_rebasin.symmetry.actions.action import action_of
from lightning_rebasin.symmetry.spec.values import Group


def best_elements(
    groups: Sequence[Group],
    costs: Mapping[str, Tensor],
    solver: Solver = "auto",
) -> dict[str, Tensor]:
    """Best elements of a root group and everything inside it, jointly.

    Args:
        groups: The family, parents before children.
        costs: For each group float64 ``(members, members)``, ``⟨A_i, B_j⟩``; groups left out gain nothing themselves.
        solver: Assignment solver.

    Returns:
        The element of each group.

    Raises:
        ConfigurationError: The matching knows no step for a group's kind.
    """
    total: dict[str, Tensor] = {}
    for group in groups:
        nothing = torch.zeros(
            group.members, group.members, dtype=torch.float64
        )
        total[group.id] = costs.get(group.id, nothing)
    candidates: dict[str, Tensor] = {}
    for group in reversed(groups):
        count, size = group.instances, group.size
        blocks = (
            total[group.id].reshape(count, size, count, size).transpose(1, 2)
        )
        problems = blocks.reshape(count * count, size, size)
        if action_of(group).cost == "diagonal":
            problems = problems.diagonal(dim1=-2, dim2=-1)
        elements, values = step_of(group).best(problems, solver)
        candidates[group.id] = elements.reshape(
            count, count, *elements.shape[1:]
        )
        if group.parent is not None:
            total[group.parent.id] = total[group.parent.id] + values.reshape(
                count, count
            )
    return _choose(groups, candidates)


def _choose(
    groups: Sequence[Group], candidates: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """From the outside in: each instance takes the element of the pair that its parent decided on."""
    found: dict[str, Tensor] = {}
    flats: dict[str, Tensor] = {}
    for group in groups:
        # At the top there is one instance, paired with itself.
        parent = (
            torch.zeros(1, dtype=torch.long)
            if group.parent is None
            else flats[group.parent.id]
        )
        chosen = candidates[group.id][torch.arange(len(parent)), parent]
        outer = group.shape[:-1]
        found[group.id] = chosen.reshape(*outer, *chosen.shape[1:])
        if action_of(group).rearranges:
            flats[group.id] = (parent[:, None] * group.size + chosen).reshape(
                -1
            )
    return found
