"""A start for coordinate descent that no unlucky first step can spoil: graduated assignment.

Coordinate descent commits every group to one permutation while its neighbours still stand in arbitrary order, and the
first commitments decide where it ends.  Here every group holds a doubly stochastic matrix instead, uniform at first.  A sweep
replaces each one by the Sinkhorn projection of ``exp(C / T)``, where the cost ``C`` sees the neighbours through their soft
matrices; as the temperature ``T`` falls, the matrices sharpen together and weak evidence never outvotes strong.  The
last costs are rounded to permutations.  Nothing depends on the order in which the units of either network happen to stand.

Sources: Gold and Rangarajan, "A graduated assignment algorithm for graph matching", PAMI 18 (1996); Sinkhorn (1964).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor

from lightning_rebasin.matching.costs.cache import CostCache
from lightning_rebasin.matching.families import Family, solve_nested

#: Temperatures of the sweeps in standard deviations of the costs, falling geometrically.
HOT, COLD = 1.0, 0.1
SWEEPS = 10
ITERATIONS = 3


@final
class Annealing:
    """Soft orders of all groups of one pair of models.

    Args:
        families: What is annealed.
        costs: Gives the costs under soft orders.
        noise: Relative size of a random disturbance of the uniform beginning; 0 is deterministic.
        generator: Draws the disturbance.
    """

    def __init__(
        self, families: Sequence[Family], costs: CostCache, noise: float = 0.0, generator: torch.Generator | None = None
    ) -> None:
        self._families = families
        self._costs = costs
        self._soft: dict[str, Tensor] = {}
        self._potentials: dict[str, tuple[Tensor, Tensor]] = {}
        for family in families:
            for group in family.groups:
                uniform = torch.full((group.members, group.members), 1.0 / group.members, dtype=costs.dtype)
                if noise:
                    uniform *= 1.0 + noise * torch.randn(uniform.shape, generator=generator, dtype=costs.dtype)
                self._soft[group.id] = uniform.to(costs.device)

    def run(self, sweeps: int = SWEEPS, iterations: int = ITERATIONS) -> dict[str, Tensor]:
        """Anneal and round.

        Args:
            sweeps: Number of temperatures.
            iterations: Sinkhorn iterations per visit.

        Returns:
            Flat order of each group.
        """
        last: dict[str, Mapping[str, Tensor]] = {}
        for sweep in range(sweeps):
            temperature = HOT * (COLD / HOT) ** (sweep / max(sweeps - 1, 1))
            for family in self._families if sweep % 2 == 0 else self._families[::-1]:
                costs = {group.id: self._costs.soft_matrix(group.id, self._soft) for group in family.groups}
                self._project(family, costs, temperature, iterations)
                last[family.root.id] = costs
        flats: dict[str, Tensor] = {}
        for family in self._families:
            solved = solve_nested(family, {name: cost.cpu().numpy() for name, cost in last[family.root.id].items()})
            flats.update({name: torch.from_numpy(order) for name, order in solved.items()})
        return flats

    def _project(self, family: Family, costs: dict[str, Tensor], temperature: float, iterations: int) -> None:
        """Soft orders of one family from its costs, the inner groups for every pair of parent members."""
        inner: dict[str, Tensor] = {}
        total = dict(costs)
        for group in reversed(family.groups):
            blocks = total[group.id].reshape(group.instances, group.size, group.instances, group.size).transpose(1, 2)
            scale = temperature * float(blocks.std()) if blocks.numel() > 1 else 0.0
            inner[group.id] = self._sinkhorn(group.id, blocks, scale, iterations)
            if group.parent is not None:
                value = (inner[group.id] * blocks).sum((-1, -2))
                total[group.parent.id] = total[group.parent.id] + value
        for group in family.groups:
            soft = inner[group.id]
            if group.parent is not None:
                soft = soft * self._soft[group.parent.id][:, :, None, None]
            self._soft[group.id] = soft.transpose(1, 2).reshape(group.members, group.members)

    def _sinkhorn(self, name: str, cost: Tensor, temperature: float, iterations: int) -> Tensor:
        """Doubly stochastic matrices nearest to ``exp(cost / T)``; potentials are kept from visit to visit."""
        if temperature <= 0.0:
            return torch.full_like(cost, 1.0 / cost.shape[-1])
        rows, columns = self._potentials.get(name) or (cost.amax(-1), torch.zeros_like(cost[..., 0, :]))
        # Shifting by the row maxima of the reduced costs keeps every exponent at or below zero.
        reduced = cost - columns[..., None, :]
        rows = reduced.amax(-1)
        kernel = ((reduced - rows[..., None]) / temperature).exp_()
        v = torch.ones_like(columns)
        u = torch.ones_like(rows)
        for _ in range(iterations):
            u = (kernel @ v[..., None]).squeeze(-1).clamp_min_(1e-30).reciprocal_()
            v = (u[..., None, :] @ kernel).squeeze(-2).clamp_min_(1e-30).reciprocal_()
        self._potentials[name] = (rows, columns - temperature * v.log())
        return kernel.mul_(u[..., :, None]).mul_(v[..., None, :])
