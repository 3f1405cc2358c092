"""Graduated assignment of several networks at once.

As in :mod:`.anneal` every group holds a doubly stochastic matrix that sharpens as the temperature falls, but here every
network but one has its own, and each is drawn to the sum of all the *others* as they stand at that temperature.  One
network stays as it is: it is the frame, and it breaks the tie between all the equally good ones.  Matching the networks
one after another instead commits the second before the third was looked at; its mistakes stay in the mean that the
others are matched to.

Sources: Gold and Rangarajan, "A graduated assignment algorithm for graph matching", PAMI 18 (1996), with the objective
of Crisostomi et al., "C²M³: Cycle-Consistent Multi-Model Merging", NeurIPS 2024.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_rebasin.matching.many.soft import (
    Soft,
    SoftNetworks,
    permutation_matrix,
)
from lightning_rebasin.matching.many.universe import Universe
from lightning_rebasin.matching.search.anneal import Schedule, SoftOrders
from lightning_rebasin.symmetry.actions.permutation import Permutation


def joint_anneal(
    universe: Universe, frame: int, schedule: Schedule, seed: int
) -> None:
    """Give every network of ``universe`` the permutation that cooling all of them together ends in.

    Args:
        universe: The networks; its permutations and sum are replaced.
        frame: The network that stays as it is.
        schedule: How to cool.
        seed: Seeds the order in which the networks are visited.
    """
    count = len(universe.permutations)
    universe.permutations = [Permutation.identity(universe.spec)] * count
    _JointAnnealing(universe, frame, torch.Generator().manual_seed(seed)).run(
        schedule
    )


class _JointAnnealing:
    def __init__(
        self, universe: Universe, frame: int, generator: torch.Generator
    ) -> None:
        self._u = universe
        self._networks = networks = SoftNetworks(universe)
        self._generator = generator
        self._free = [
            i for i in range(len(universe.permutations)) if i != frame
        ]
        device = torch.device("cpu")
        self._orders = {
            i: SoftOrders(networks.families, networks.dtype, device, generator)
            for i in self._free
        }
        eye: Soft = {
            g.id: permutation_matrix(torch.arange(g.members), networks.dtype)
            for g in networks.groups
        }
        self._softs = [
            self._orders[i].soft if i in self._orders else eye
            for i in range(len(universe.permutations))
        ]

    def run(self, schedule: Schedule) -> None:
        sweeps = schedule.affordable(self._networks.work)
        found = list(self._u.permutations)
        for sweep in range(sweeps):
            # Adding and taking away leaves rounding errors behind: every sweep starts from a clean sum.
            total, _ = self._networks.total(self._softs)
            for k in torch.randperm(
                len(self._free), generator=self._generator
            ).tolist():
                i = self._free[k]
                costs = self._visit(
                    i,
                    total,
                    schedule.temperature(sweep, sweeps),
                    backward=sweep % 2 == 1,
                )
                if sweep == sweeps - 1:
                    found[i] = self._networks.rounded(i, costs)
        self._u.move(found)

    def _visit(
        self,
        i: int,
        total: dict[str, Tensor],
        temperature: float,
        *,
        backward: bool,
    ) -> dict[str, Tensor]:
        """Cool one network against the sum of the others; returns its last costs and updates the sum."""
        networks, orders, weight = (
            self._networks,
            self._orders[i],
            self._u.weights[i],
        )
        source = networks.source(i)
        for name, tensor in networks.applied(source, orders.soft).items():
            total[name] = total[name] - weight * tensor
        cache = networks.costs(total, source)
        costs: dict[str, Tensor] = {}
        for family in (
            networks.families[::-1] if backward else networks.families
        ):
            own = {
                group.id: cache.soft_matrix(group.id, orders.soft)
                for group in family.groups
            }
            orders.cool(family, own, temperature)
            costs.update(own)
        for name, tensor in networks.applied(source, orders.soft).items():
            total[name] = total[name] + weight * tensor
        return costs
