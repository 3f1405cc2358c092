"""The step of permutation groups: linear assignment, and families of nested groups solved from the inside out.

Heads and the dimensions inside each head must be chosen together: how well head ``h`` fits head ``h'`` depends on the
best inner permutation for that pair.  So a nested group is solved from the inside out: for every pair of parent
members the inner assignment problem (all of them in one batch), whose value is added to the parent's cost, and so on
up to the root.  Without coupling between the members of a family this is the exact optimum of the step.

With 2 heads of 3 dimensions the inner costs are a 6×6 matrix, seen as 2×2 blocks of 3×3.  Four inner problems give four
values; added to the 2×2 cost of the heads they decide which head goes where, and each head then takes the inner order
of its pair.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_rebasin.assignment.solve import Solver, solve_batch
from lightning_rebasin.matching.steps.step import Step, register_step
from lightning_rebasin.symmetry.spec.fields import (
    SpecFields,
)
from lightning_rebasin.symmetry.spec.values import (
    Group,
)

Matrix = NDArray[np.floating]
#: ``new member i = old member order[i]``, ancestors' moves included.
FlatOrder = NDArray[np.int64]


@final
class PermutationStep(Step):
    """The assignment with the largest sum."""

    kind = "permutation"

    def best(self, costs: Tensor, solver: Solver) -> tuple[Tensor, Tensor]:
        """One assignment problem each."""
        columns = torch.from_numpy(solve_batch(costs.numpy(), solver))
        values = costs.gather(-1, columns[..., None]).squeeze(-1).sum(-1)
        return columns, values


PERMUTATION = register_step(PermutationStep())


@dataclass(frozen=True, eq=False)
class Family:
    """A root group with everything nested in it, moved in one step.

    Args:
        root: The outermost group.
        groups: All groups of the family, parents before children.
        coupled: Whether two axes of one block move with this family, so that the step is only a linearisation.
    """

    root: Group
    groups: tuple[Group, ...]
    coupled: bool

    @property
    def nested(self) -> bool:
        """Whether there is anything inside the root."""
        return len(self.groups) > 1


def families_of(
    spec: SpecFields, coupled: Collection[str] = ()
) -> tuple[Family, ...]:
    """All families of ``spec`` in the order of their roots.

    Args:
        spec: The spec.
        coupled: Ids of roots that act on two axes of one block.
    """
    found = []
    for root in spec.groups.values():
        if root.parent is None:
            groups = tuple(
                g for g in spec.groups.values() if g.root.id == root.id
            )
            found.append(Family(root, groups, root.id in coupled))
    return tuple(found)


def solve_nested(
    family: Family,
    costs: Mapping[str, Matrix],
    solver: Solver = "auto",
    *,
    stay: bool = False,
) -> dict[str, FlatOrder]:
    """Best flat orders of a family for the given costs, all its groups jointly.

    Args:
        family: The family.
        costs: For each group ``(members, members)``: gain if new member ``i`` is old member ``j``; groups left out gain
            nothing by themselves.
        solver: Assignment solver.
        stay: Leave units in place where the identity is as good (units that never do anything).

    Returns:
        Flat order of each group, ``(members,)``.
    """
    total: dict[str, Matrix] = {}
    for group in family.groups:
        known = costs.get(group.id)
        zeros = np.zeros((group.members, group.members))
        total[group.id] = (
            zeros if known is None else np.asarray(known, dtype=np.float64)
        )
    inner: dict[str, NDArray[np.int64]] = {}
    for group in reversed(family.groups):
        blocks = pair_blocks(total[group.id], group)
        columns = _best_columns(blocks, solver, stay=stay)
        inner[group.id] = columns
        if group.parent is not None:
            values = np.take_along_axis(blocks, columns[..., None], 3)[
                ..., 0
            ].sum(-1)
            total[group.parent.id] = total[group.parent.id] + values
    flats: dict[str, FlatOrder] = {}
    for group in family.groups:
        # At the top there is one instance, paired with itself.
        parent = (
            np.zeros(1, np.int64)
            if group.parent is None
            else flats[group.parent.id]
        )
        chosen = inner[group.id][np.arange(len(parent)), parent]
        flats[group.id] = (parent[:, None] * group.size + chosen).reshape(-1)
    return flats


def solve_inside(
    group: Group, cost: Matrix, flat: FlatOrder, solver: Solver = "auto"
) -> FlatOrder:
    """Best flat order of one group while its ancestors stay where ``flat`` puts them."""
    blocks = pair_blocks(np.asarray(cost), group)
    parents = flat.reshape(group.instances, group.size)[:, 0] // group.size
    own = blocks[np.arange(group.instances), parents]
    return (parents[:, None] * group.size + solve_batch(own, solver)).reshape(
        -1
    )


def pair_blocks(cost: Matrix, group: Group) -> Matrix:
    """``(members, members)`` as one problem per pair of instances: ``(instances, instances, size, size)``."""
    count, size = group.instances, group.size
    return cost.reshape(count, size, count, size).transpose(0, 2, 1, 3)


def _best_columns(
    blocks: Matrix, solver: Solver, *, stay: bool
) -> NDArray[np.int64]:
    """The best assignment of every pair of instances, ``(instances, instances, size)``."""
    count, size = blocks.shape[0], blocks.shape[-1]
    columns = solve_batch(blocks.reshape(-1, size, size), solver).reshape(
        count, count, size
    )
    if stay:
        best = np.take_along_axis(blocks, columns[..., None], 3)[..., 0].sum(
            -1
        )
        in_place = np.trace(blocks, axis1=2, axis2=3)
        columns[in_place >= best] = np.arange(size)
    return columns
