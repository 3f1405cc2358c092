"""Several networks under doubly stochastic matrices instead of permutations.

``P(Θ)`` mixes the units of every group by the group's matrix; at a permutation matrix it is the permuted network.  This
is what :mod:`.frank_wolfe` walks through and what :mod:`.joint_anneal` cools.  Groups on joint axes (grouped
convolutions) stay as the universe has them and are left to the descents that follow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor

from lightning_rebasin.matching.costs.blocks import objective_tensors
from lightning_rebasin.matching.costs.cache import CostCache, TermTable
from lightning_rebasin.matching.costs.layouts import Layouts
from lightning_rebasin.matching.many.universe import State, Universe
from lightning_rebasin.matching.objective import inner_product
from lightning_rebasin.matching.steps.permutation import (
    families_of,
    solve_nested,
)
from lightning_rebasin.symmetry.actions.permutation import Permutation

#: Doubly stochastic matrix ``(members, members)`` of each group of one network.
Soft = Mapping[str, Tensor]


@final
class SoftNetworks:
    """What soft orders make of the networks of a universe.

    Args:
        universe: The networks; its permutations say where the groups stand that have no soft order.
    """

    def __init__(self, universe: Universe) -> None:
        self._u = universe
        self.table = TermTable.of(universe.spec)
        joint = {
            universe.spec.groups[g].root.id
            for terms in self.table.by_group.values()
            for t in terms
            if t.joint
            for g in t.block.groups
        }
        families = families_of(universe.spec, self.table.coupled)
        self.families = tuple(
            family for family in families if family.root.id not in joint
        )
        self.groups = [
            group for family in self.families for group in family.groups
        ]
        self._names = objective_tensors(universe.spec)
        self.dtype = torch.promote_types(
            next(iter(universe.sum.values())).dtype, torch.float32
        )

    def source(self, i: int) -> State:
        """Network ``i`` with the groups that have no soft order already in place."""
        moved = {g.id for g in self.groups}
        orders = {
            name: order
            for name, order in self._u.permutations[i].orders.items()
            if name not in moved
        }
        return (
            Permutation(self._u.spec, orders).apply(self._u.load(i))
            if orders
            else self._u.load(i)
        )

    def applied(self, state: State, soft: Soft) -> dict[str, Tensor]:
        """``P(Θ)``: every axis mixed by its group's matrix; only the tensors of the objective."""
        result = {
            name: state[name].detach().to(self.dtype).clone()
            for name in self._names
        }
        for block in self.table.blocks:
            if not any(group in soft for axis in block.axes for group in axis):
                continue
            tensor = result[block.tensor]
            places = block.take(
                torch.arange(tensor.numel()).reshape(tensor.shape)
            )
            mixed = block.take(state[block.tensor].detach()).to(self.dtype)
            for axis, groups in enumerate(block.axes):
                if len(groups) == 1 and groups[0] in soft:
                    front = mixed.movedim(axis, 0)
                    mixed = (
                        (soft[groups[0]] @ front.reshape(front.shape[0], -1))
                        .reshape(front.shape)
                        .movedim(0, axis)
                    )
            tensor.view(-1)[places.reshape(-1)] = mixed.reshape(-1)
        return result

    def total(self, softs: Sequence[Soft]) -> tuple[dict[str, Tensor], float]:
        """``Σ w_a P_a(Θ_a)`` and ``Σ w_a² ‖P_a(Θ_a)‖²``."""
        total: dict[str, Tensor] = {}
        squares = 0.0
        for i, soft in enumerate(softs):
            weight = self._u.weights[i]
            for name, tensor in self.applied(self.source(i), soft).items():
                squares += weight**2 * inner_product(tensor, tensor)
                total[name] = (
                    total[name] + weight * tensor
                    if name in total
                    else weight * tensor
                )
        return total, squares

    def value(self, softs: Sequence[Soft]) -> float:
        """``Σ_{a<b} w_a w_b ⟨P_a(Θ_a), P_b(Θ_b)⟩``."""
        total, squares = self.total(softs)
        return 0.5 * (
            sum(inner_product(t, t) for t in total.values()) - squares
        )

    def costs(self, reference: State, source: State) -> CostCache:
        """Cost matrices of one network against a sum of others."""
        device = torch.device("cpu")
        layouts = (
            Layouts(reference, self.dtype, device),
            Layouts(source, self.dtype, device),
        )
        return CostCache(self.table, *layouts, self.dtype, device)

    @property
    def work(self) -> float:
        """Floating-point operations of one visit of one network.

        Beside making the costs it mixes the network's own weights, which takes about as long.
        """
        return 2.0 * self.costs(self._u.sum, self._u.sum).soft_work

    def rounded(self, i: int, costs: Mapping[str, Tensor]) -> Permutation:
        """The permutation of network ``i`` whose matrices have the largest inner products with ``costs``."""
        flats = {
            name: self._u.permutations[i].flat(name)
            for name in self._u.permutations[i].orders
        }
        for family in self.families:
            own = {g.id: costs[g.id].numpy() for g in family.groups}
            solved = solve_nested(family, own, self._u.solver)
            flats.update(
                {name: torch.from_numpy(flat) for name, flat in solved.items()}
            )
        return Permutation.from_flat(self._u.spec, flats)


def permutation_matrix(flat: Tensor, dtype: torch.dtype) -> Tensor:
    """``P[i, flat[i]] = 1``."""
    return torch.zeros(len(flat), len(flat), dtype=dtype).scatter_(
        1, flat[:, None], 1.0
    )


def uniform_matrix(size: int, dtype: torch.dtype) -> Tensor:
    """Every entry ``1 / size``: nothing is known yet."""
    return torch.full((size, size), 1.0 / size, dtype=dtype)
