"""Frank–Wolfe over the permutations of several networks at once (C²M³).

Each network ``a`` and group holds a doubly stochastic matrix ``P_a``.  The gradient of
``f = Σ_{a<b} w_a w_b ⟨P_a(Θ_a), P_b(Θ_b)⟩`` with respect to ``P_a`` is an ordinary cost matrix: that of ``Θ_a``
against the weighted sum of the *other* soft networks.  The permutations that maximise its inner product are the
direction; one step length for all of them at once is found exactly, because ``f`` is a polynomial of low degree along
a line.

Groups on joint axes (grouped convolutions) are left to the sweeps that follow.

Source: Crisostomi et al., "C²M³: Cycle-Consistent Multi-Model Merging", NeurIPS 2024.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from lightning_rebasin.matching.costs.cache import CostCache
from lightning_rebasin.matching.many.soft import (
    Soft,
    SoftNetworks,
    permutation_matrix,
    uniform_matrix,
)
from lightning_rebasin.matching.many.universe import Universe
from lightning_rebasin.matching.steps.permutation import Family, solve_nested
from lightning_rebasin.symmetry.actions.permutation import Permutation

_MOST_STEPS = 50
_PATIENCE = 5
_TOLERANCE = 1e-6


def frank_wolfe(universe: Universe) -> float:
    """Improve the permutations of ``universe`` together.

    Starts half-way between the given permutations and the uniform matrix, so that every pair can still be reached,
    and keeps the rounded end only if it is better.

    Args:
        universe: The networks; its permutations and sum are updated.

    Returns:
        The objective, not below what it was.
    """
    return _FrankWolfe(universe).run()


class _FrankWolfe:
    def __init__(self, universe: Universe) -> None:
        self._u = universe
        self._networks = SoftNetworks(universe)

    def run(self) -> float:
        u, networks = self._u, self._networks
        before, kept = u.objective, list(u.permutations)
        soft = [self._half_way(permutation) for permutation in u.permutations]
        value, still = networks.value(soft), 0
        for _ in range(_MOST_STEPS):
            target = self._direction(soft)
            step, after = self._line(soft, target)
            soft = [
                _mix(s, t, step) for s, t in zip(soft, target, strict=True)
            ]
            still = still + 1 if after - value < _TOLERANCE * abs(after) else 0
            value = after
            if still >= _PATIENCE or step == 0.0:
                break
        u.move([networks.rounded(i, s) for i, s in enumerate(soft)])
        if u.objective <= before:
            u.move(kept)
        return u.objective

    def _half_way(self, permutation: Permutation) -> Soft:
        dtype = self._networks.dtype
        return {
            g.id: 0.5 * permutation_matrix(permutation.flat(g.id), dtype)
            + 0.5 * uniform_matrix(g.members, dtype)
            for g in self._networks.groups
        }

    def _direction(self, softs: Sequence[Soft]) -> Sequence[Soft]:
        """For each network the permutations of largest inner product with the gradient."""
        networks = self._networks
        total, _ = networks.total(softs)
        found = []
        for i, soft in enumerate(softs):
            source = networks.source(i)
            mine = networks.applied(source, soft)
            others = {
                name: total[name] - self._u.weights[i] * mine[name]
                for name in total
            }
            costs = networks.costs(others, source)
            target: dict[str, torch.Tensor] = {}
            for family in networks.families:
                target.update(self._vertex(family, costs, soft))
            found.append(target)
        return found

    def _vertex(self, family: Family, costs: CostCache, soft: Soft) -> Soft:
        matrices = {
            group.id: costs.soft_matrix(group.id, soft).numpy()
            for group in family.groups
        }
        flats = solve_nested(family, matrices, self._u.solver)
        return {
            name: permutation_matrix(
                torch.from_numpy(flat), self._networks.dtype
            )
            for name, flat in flats.items()
        }

    def _line(
        self, softs: Sequence[Soft], target: Sequence[Soft]
    ) -> tuple[float, float]:
        """Exact line search: ``f`` is a polynomial in the step, of twice the most axes of a tensor in degree."""
        degree = 2 * max(
            sum(bool(axis) for axis in block.axes)
            for block in self._networks.table.blocks
        )
        steps = np.linspace(0.0, 1.0, degree + 1)
        values = [
            self._networks.value(
                [
                    _mix(s, t, float(step))
                    for s, t in zip(softs, target, strict=True)
                ]
            )
            for step in steps
        ]
        polynomial = np.polynomial.Polynomial.fit(steps, values, degree)
        roots: list[complex] = [
            complex(root) for root in polynomial.deriv().roots()
        ]
        inside = [
            r.real for r in roots if abs(r.imag) < 1e-9 and 0.0 < r.real < 1.0
        ]
        best = max(
            [0.0, 1.0, *inside], key=lambda step: float(polynomial(step))
        )
        return best, float(polynomial(best))


def _mix(soft: Soft, target: Soft, step: float) -> Soft:
    return {
        name: (1.0 - step) * soft[name] + step * target[name] for name in soft
    }
