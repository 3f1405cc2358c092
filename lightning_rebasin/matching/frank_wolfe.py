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

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from lightning_rebasin.matching.costs.blocks import objective_tensors
from lightning_rebasin.matching.costs.cache import CostCache, TermTable
from lightning_rebasin.matching.costs.layouts import Layouts
from lightning_rebasin.matching.families import Family, families_of, solve_nested
from lightning_rebasin.matching.many import Universe
from lightning_rebasin.matching.objective import inner_product
from lightning_rebasin.symmetry.permutation import Permutation

Soft = dict[str, Tensor]
State = Mapping[str, Tensor]
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
        self._table = TermTable.of(universe.spec)
        joint = {
            universe.spec.groups[g].root.id
            for terms in self._table.by_group.values()
            for t in terms
            if t.joint
            for g in t.block.groups
        }
        families = families_of(universe.spec, self._table.coupled)
        self._families = tuple(family for family in families if family.root.id not in joint)
        self._groups = [group for family in self._families for group in family.groups]
        self._names = objective_tensors(universe.spec)
        self._dtype = torch.promote_types(next(iter(universe.sum.values())).dtype, torch.float32)

    def run(self) -> float:
        u = self._u
        before, kept = u.objective, list(u.permutations)
        soft = [self._half_way(permutation) for permutation in u.permutations]
        value, still = self._value(soft), 0
        for _ in range(_MOST_STEPS):
            target = self._direction(soft)
            step, after = self._line(soft, target)
            soft = [self._mix(s, t, step) for s, t in zip(soft, target, strict=True)]
            still = still + 1 if after - value < _TOLERANCE * abs(after) else 0
            value = after
            if still >= _PATIENCE or step == 0.0:
                break
        u.permutations = [self._rounded(s, p) for s, p in zip(soft, kept, strict=True)]
        u.sum = u.summed()
        if u.objective <= before:
            u.permutations = kept
            u.sum = u.summed()
        return u.objective

    def _half_way(self, permutation: Permutation) -> Soft:
        return {
            g.id: 0.5 * _matrix(permutation.flat(g.id), self._dtype) + 0.5 * _uniform(g.members, self._dtype)
            for g in self._groups
        }

    def _mix(self, soft: Soft, target: Soft, step: float) -> Soft:
        return {name: (1.0 - step) * soft[name] + step * target[name] for name in soft}

    def _source(self, i: int) -> State:
        """Network ``i`` with the groups that Frank–Wolfe does not move already in place."""
        moved = {g.id for g in self._groups}
        orders = {name: order for name, order in self._u.permutations[i].orders.items() if name not in moved}
        return Permutation(self._u.spec, orders).apply(self._u.load(i)) if orders else self._u.load(i)

    def _applied(self, state: State, soft: Soft) -> dict[str, Tensor]:
        """``P(Θ)``: every axis mixed by its group's doubly stochastic matrix."""
        result = {name: state[name].detach().to(self._dtype).clone() for name in self._names}
        for block in self._table.blocks:
            if not any(group in soft for axis in block.axes for group in axis):
                continue
            tensor = result[block.tensor]
            places = block.take(torch.arange(tensor.numel()).reshape(tensor.shape))
            mixed = block.take(state[block.tensor].detach()).to(self._dtype)
            for axis, groups in enumerate(block.axes):
                if len(groups) == 1 and groups[0] in soft:
                    front = mixed.movedim(axis, 0)
                    mixed = (soft[groups[0]] @ front.reshape(front.shape[0], -1)).reshape(front.shape).movedim(0, axis)
            tensor.view(-1)[places.reshape(-1)] = mixed.reshape(-1)
        return result

    def _total(self, softs: list[Soft]) -> tuple[dict[str, Tensor], float]:
        """``Σ w_a P_a(Θ_a)`` and ``Σ w_a² ‖P_a(Θ_a)‖²``."""
        total: dict[str, Tensor] = {}
        squares = 0.0
        for i, soft in enumerate(softs):
            weight = self._u.weights[i]
            for name, tensor in self._applied(self._source(i), soft).items():
                squares += weight**2 * inner_product(tensor, tensor)
                total[name] = total[name] + weight * tensor if name in total else weight * tensor
        return total, squares

    def _value(self, softs: list[Soft]) -> float:
        total, squares = self._total(softs)
        return 0.5 * (sum(inner_product(t, t) for t in total.values()) - squares)

    def _direction(self, softs: list[Soft]) -> list[Soft]:
        """For each network the permutations of largest inner product with the gradient."""
        total, _ = self._total(softs)
        found = []
        for i, soft in enumerate(softs):
            source = self._source(i)
            mine = self._applied(source, soft)
            others = {name: total[name] - self._u.weights[i] * mine[name] for name in total}
            device = torch.device("cpu")
            layouts = (Layouts(others, self._dtype, device), Layouts(source, self._dtype, device))
            costs = CostCache(self._table, *layouts, self._dtype, device)
            target: Soft = {}
            for family in self._families:
                target.update(self._vertex(family, costs, soft))
            found.append(target)
        return found

    def _vertex(self, family: Family, costs: CostCache, soft: Soft) -> Soft:
        matrices = {group.id: costs.soft_matrix(group.id, soft).numpy() for group in family.groups}
        flats = solve_nested(family, matrices)
        return {name: _matrix(torch.from_numpy(flat), self._dtype) for name, flat in flats.items()}

    def _line(self, softs: list[Soft], target: list[Soft]) -> tuple[float, float]:
        """Exact line search: ``f`` is a polynomial in the step, of twice the most axes of a tensor in degree."""
        degree = 2 * max(sum(bool(axis) for axis in block.axes) for block in self._table.blocks)
        steps = np.linspace(0.0, 1.0, degree + 1)
        values = [
            self._value([self._mix(s, t, float(step)) for s, t in zip(softs, target, strict=True)]) for step in steps
        ]
        polynomial = np.polynomial.Polynomial.fit(steps, values, degree)
        roots: list[complex] = [complex(root) for root in polynomial.deriv().roots()]
        inside = [r.real for r in roots if abs(r.imag) < 1e-9 and 0.0 < r.real < 1.0]
        best = max([0.0, 1.0, *inside], key=lambda step: float(polynomial(step)))
        return best, float(polynomial(best))

    def _rounded(self, soft: Soft, before: Permutation) -> Permutation:
        flats = {name: before.flat(name) for name in before.orders}
        for family in self._families:
            solved = solve_nested(family, {g.id: soft[g.id].numpy() for g in family.groups})
            flats.update({name: torch.from_numpy(flat) for name, flat in solved.items()})
        return Permutation.from_flat(self._u.spec, flats)


def _matrix(flat: Tensor, dtype: torch.dtype) -> Tensor:
    """``P[i, flat[i]] = 1``."""
    return torch.zeros(len(flat), len(flat), dtype=dtype).scatter_(1, flat[:, None], 1.0)


def _uniform(size: int, dtype: torch.dtype) -> Tensor:
    return torch.full((size, size), 1.0 / size, dtype=dtype)
