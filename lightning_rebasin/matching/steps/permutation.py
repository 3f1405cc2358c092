"""Families: a root group with everything nested in it, moved in one step.

Heads and the dimensions inside each head must be chosen together: how well head ``h`` fits head ``h'`` depends on the
best inner permutation for that pair.  So a nested group is solved from the inside out: for every pair of parent
members the inner assignment problem (all of them in one batch), whose value is added to the parent's cost, and so on
up to the root. Without coupling between the members of a family this is the exact optimum of the step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lightning_rebasin.assignment.solve import solve_columns, solve_many
from lightning_rebasin.symmetry.spec.spec import PermutationSpec
from lightning_rebasin.symmetry.spec.values import Group

Matrix = NDArray[np.floating]
Order = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Family:
    """A root group and its descendants.

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


def families_of(spec: PermutationSpec, coupled: frozenset[str]) -> tuple[Family, ...]:
    """All families of ``spec`` in the order of their roots.

    Args:
        spec: The spec.
        coupled: Ids of roots that act on two axes of one block.
    """
    roots = [group for group in spec.groups.values() if group.parent is None]
    return tuple(
        Family(
            root, tuple(g for g in spec.groups.values() if g.root.id == root.id), root.id in coupled
        )
        for root in roots
    )


def solve_nested(family: Family, costs: Mapping[str, Matrix]) -> dict[str, Order]:
    """Best flat orders of a family for the given costs, all its groups jointly.

    Args:
        family: The family.
        costs: For each group ``(members, members)``: gain if new member ``i`` is old member ``j``.

    Returns:
        Flat order of each group, ``(members,)``.
    """
    inner: dict[str, NDArray[np.int64]] = {}
    total = {group.id: np.asarray(costs[group.id], dtype=np.float64) for group in family.groups}
    for group in reversed(family.groups):
        if group.parent is None:
            continue
        columns, values = _solve_pairs(total[group.id], group.instances, group.size)
        inner[group.id] = columns
        total[group.parent.id] = total[group.parent.id] + values
    flats = {family.root.id: solve_columns(total[family.root.id])}
    for group in family.groups[1:]:
        assert group.parent is not None
        parent = flats[group.parent.id]
        chosen = inner[group.id][np.arange(len(parent)), parent]
        flats[group.id] = (parent[:, None] * group.size + chosen).reshape(-1)
    return flats


def solve_inside(group: Group, cost: Matrix, flat: Order) -> Order:
    """Best flat order of one group while its ancestors stay where ``flat`` puts them."""
    blocks = np.asarray(cost).reshape(group.instances, group.size, group.instances, group.size)
    parents = flat.reshape(group.instances, group.size)[:, 0] // group.size
    own = blocks[np.arange(group.instances), :, parents]
    return (parents[:, None] * group.size + solve_many(own)).reshape(-1)


def _solve_pairs(cost: Matrix, instances: int, size: int) -> tuple[NDArray[np.int64], Matrix]:
    blocks = cost.reshape(instances, size, instances, size).transpose(0, 2, 1, 3)
    columns = solve_many(blocks.reshape(-1, size, size)).reshape(instances, instances, size)
    values = np.take_along_axis(blocks, columns[..., None], 3)[..., 0].sum(-1)
    return columns, values
