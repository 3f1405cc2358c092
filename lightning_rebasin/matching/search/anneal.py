"""A start for coordinate descent that no unlucky first step can spoil: graduated assignment.

Coordinate descent commits every group to one permutation while its neighbours still stand in arbitrary order, and the
first commitments decide where it ends.  Here every group holds a doubly stochastic matrix instead, uniform at first.
A sweep replaces each one by the Sinkhorn projection of ``exp(C / T)``, where the cost ``C`` sees the neighbours
through their soft matrices; as the temperature ``T`` falls, the matrices sharpen together and weak evidence never
outvotes strong.  The last costs are rounded to permutations.  Nothing depends on the order in which the units of
either network happen to stand.

Sources: Gold and Rangarajan, "A graduated assignment algorithm for graph matching", PAMI 18 (1996); Sinkhorn (1964).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from lightning_rebasin.assignment.solve import Solver
from lightning_rebasin.matching.costs.cache import CostCache
from lightning_rebasin.matching.steps.permutation import Family, solve_nested


@dataclass(frozen=True)
class Schedule:
    """How the temperature falls, geometrically, in standard deviations of the costs.

    Args:
        sweeps: Number of temperatures.
        hot: First temperature.
        cold: Last temperature.
        noise: Relative size of a random disturbance of the uniform beginning; 0 is deterministic.
    """

    sweeps: int
    hot: float = 1.0
    cold: float = 0.05
    noise: float = 0.0

    def temperature(self, sweep: int, sweeps: int) -> float:
        """Temperature of one of ``sweeps`` sweeps."""
        return float(
            self.hot * (self.cold / self.hot) ** (sweep / max(sweeps - 1, 1))
        )

    def affordable(self, work: float) -> int:
        """Sweeps for a pair whose sweep takes ``work`` floating-point operations: fewer for very large networks."""
        return min(
            self.sweeps, max(_FEWEST_SWEEPS, int(_BUDGET / max(work, 1.0)))
        )


SLOW = Schedule(30)
FAST = Schedule(10, cold=0.1)
#: Sinkhorn iterations per visit: the potentials are kept, so few are enough.
_ITERATIONS = 3
_BUDGET = 1e10
_FEWEST_SWEEPS = 8


@final
class Annealing:
    """Annealing of all groups of one pair of models.

    Args:
        families: What is annealed.
        costs: Gives the costs under soft orders.
        schedule: How to cool.
        generator: Draws the disturbance.
        solver: Assignment solver, for the last step.
    """

    def __init__(
        self,
        families: Sequence[Family],
        costs: CostCache,
        schedule: Schedule,
        generator: torch.Generator,
        solver: Solver = "auto",
    ) -> None:
        self._solver = solver
        self._families = families
        self._schedule = schedule
        self._costs = costs
        self._orders = SoftOrders(
            families, costs.dtype, costs.device, generator, schedule.noise
        )

    def run(self) -> dict[str, Tensor]:
        """Anneal and round.

        Returns:
            Flat order of each group.
        """
        flats: dict[str, Tensor] = {}
        schedule, sweeps = (
            self._schedule,
            self._schedule.affordable(self._costs.soft_work),
        )
        for sweep in range(sweeps):
            temperature = schedule.temperature(sweep, sweeps)
            for family in (
                self._families if sweep % 2 == 0 else self._families[::-1]
            ):
                costs = {
                    group.id: self._costs.soft_matrix(
                        group.id, self._orders.soft
                    )
                    for group in family.groups
                }
                self._orders.cool(family, costs, temperature)
                if sweep == sweeps - 1:
                    last = {n: cost.cpu().numpy() for n, cost in costs.items()}
                    solved = solve_nested(family, last, self._solver)
                    flats.update(
                        {
                            name: torch.from_numpy(order)
                            for name, order in solved.items()
                        }
                    )
        return flats


@final
class SoftOrders:
    """Doubly stochastic matrices of all groups of one model, uniform at first.

    Args:
        families: What is annealed.
        dtype: Working dtype.
        device: Where the matrices live.
        generator: Draws the disturbance.
        noise: Relative size of a random disturbance of the uniform beginning.
    """

    def __init__(
        self,
        families: Sequence[Family],
        dtype: torch.dtype,
        device: torch.device,
        generator: torch.Generator,
        noise: float = 0.0,
    ) -> None:
        self.soft: dict[str, Tensor] = {}
        self._potentials: dict[str, tuple[Tensor, Tensor]] = {}
        groups = [group for family in families for group in family.groups]
        # One allocation: matrices that live long would scatter among temporary ones and leave memory full of holes.
        room = torch.empty(
            sum(group.members**2 for group in groups),
            dtype=dtype,
            device=device,
        )
        parts = torch.split(room, [group.members**2 for group in groups])
        for group, part in zip(groups, parts, strict=True):
            uniform = torch.full(
                (group.members, group.members),
                1.0 / group.members,
                dtype=dtype,
            )
            if noise:
                uniform *= 1.0 + noise * torch.randn(
                    uniform.shape, generator=generator, dtype=dtype
                )
            self.soft[group.id] = part.view(uniform.shape).copy_(uniform)

    def cool(
        self, family: Family, costs: Mapping[str, Tensor], temperature: float
    ) -> None:
        """Replace the soft orders of one family by those of its costs, the inner groups for every pair of parents."""
        inner: dict[str, Tensor] = {}
        total: dict[str, Tensor] = dict(costs)
        for group in reversed(family.groups):
            blocks = (
                total[group.id]
                .reshape(
                    group.instances, group.size, group.instances, group.size
                )
                .transpose(1, 2)
            )
            scale = (
                temperature * float(blocks.std())
                if blocks.numel() > 1
                else 0.0
            )
            inner[group.id] = self._sinkhorn(group.id, blocks, scale)
            if group.parent is not None:
                value = (inner[group.id] * blocks).sum((-1, -2))
                total[group.parent.id] = total[group.parent.id] + value
        for group in family.groups:
            soft = inner[group.id]
            if group.parent is not None:
                soft = soft * self.soft[group.parent.id][:, :, None, None]
            self.soft[group.id].copy_(
                soft.transpose(1, 2).reshape(group.members, group.members)
            )

    def _sinkhorn(self, name: str, cost: Tensor, temperature: float) -> Tensor:
        """Doubly stochastic matrices nearest to ``exp(cost / T)``; potentials are kept from visit to visit."""
        if temperature <= 0.0:
            return torch.full_like(cost, 1.0 / cost.shape[-1])
        rows, columns = self._potentials.get(name) or (
            cost.amax(-1),
            torch.zeros_like(cost[..., 0, :]),
        )
        # Shifting by the row maxima of the reduced costs keeps every exponent at or below zero.
        reduced = cost - columns[..., None, :]
        rows = reduced.amax(-1)
        kernel = ((reduced - rows[..., None]) / temperature).exp_()
        v = torch.ones_like(columns)
        u = torch.ones_like(rows)
        for _ in range(_ITERATIONS):
            u = (
                (kernel @ v[..., None])
                .squeeze(-1)
                .clamp_min_(1e-30)
                .reciprocal_()
            )
            v = (
                (u[..., None, :] @ kernel)
                .squeeze(-2)
                .clamp_min_(1e-30)
                .reciprocal_()
            )
        self._potentials[name] = (rows, columns - temperature * v.log())
        return kernel.mul_(u[..., :, None]).mul_(v[..., None, :])
