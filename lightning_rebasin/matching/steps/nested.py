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

#: The costs of a group, or of each set of things that it acts on, by the number of its units.
GroupCosts = Tensor | Mapping[int, Tensor]


def best_elements(
    groups: Sequence[Group],
    costs: Mapping[str, GroupCosts],
    solver: Solver = "auto",
    fixed: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Best elements of a root group and everything inside it, jointly.

    Args:
        groups: The family, parents before children.
        costs: For each group float64 ``(members, members)``, ``⟨A_i, B_j⟩``; groups left out gain nothing themselves.
            For kinds that act on several sets of things, one such matrix for each set, by the units of an instance.
        solver: Assignment solver.
        fixed: Elements of groups that are decided already; a group inside one that is not has no place to be fixed to.

    Returns:
        The element of each group.

    Raises:
        ConfigurationError: The matching knows no step for a group's kind.
    """
    total = {group.id: _by_set(group, costs) for group in groups}
    candidates: dict[str, Tensor] = {}
    for group in reversed(groups):
        count = group.instances
        if fixed is not None and group.id in fixed:
            # Whichever old instance comes to a place: its element is that of the place.
            decided = fixed[group.id]
            # An order of 8 units inside each of 4 heads has the inner shape (8,), a rotation of them (8, 8).
            inner = decided.shape[len(group.shape) - 1 :]
            own = decided.reshape(count, 1, *inner)
            candidates[group.id] = own.expand(count, count, *inner)
            continue
        problems = {}
        for size, matrix in total[group.id].items():
            problems[size] = _problems(group, matrix, size)
        elements, values = step_of(group).best_of(group, problems, solver)
        candidates[group.id] = elements.reshape(
            count, count, *elements.shape[1:]
        )
        if group.parent is not None:
            outer = total[group.parent.id]
            size = group.parent.size
            outer[size] = outer[size] + values.reshape(count, count)
    return _choose(groups, candidates)


def _by_set(
    group: Group, costs: Mapping[str, GroupCosts]
) -> dict[int, Tensor]:
    """The costs of a group for each set of things that it acts on; those of its units are always there."""
    given = costs.get(group.id, {})
    by_set: dict[int, Tensor] = {}
    if isinstance(given, Tensor):
        by_set[group.size] = given
    else:
        by_set.update(given)
    if group.size not in by_set:
        members = group.members
        nothing = torch.zeros(members, members, dtype=torch.float64)
        by_set[group.size] = nothing
    return by_set


def _problems(group: Group, matrix: Tensor, size: int) -> Tensor:
    """One problem for every pair of instances: ``(pairs, size, size)``, or the diagonals of these."""
    count = group.instances
    blocks = matrix.reshape(count, size, count, size)
    pairs = blocks.transpose(1, 2)
    problems = pairs.reshape(-1, size, size)
    if action_of(group).cost == "diagonal":
        return problems.diagonal(dim1=-2, dim2=-1)
    return problems


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
