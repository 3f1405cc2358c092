"""Permutation coordinate descent over families of groups.

Visit one family at a time, everything else as it is: the best permutation of its units is one linear assignment
problem. The objective increases strictly with every accepted step, so the descent ends; the end is a local optimum,
which is why the policy above starts it several times.

Source: Ainsworth, Hayase, Srinivasa, "Git Re-Basin", ICLR 2023, algorithm 1 (arXiv 2209.04836).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_rebasin.assignment.solve import (
    Solver,
    solve_columns,
    solve_in_place,
    uses_compiled,
)
from lightning_rebasin.matching.costs.cache import CostCache
from lightning_rebasin.matching.steps.permutation import (
    Family,
    FlatOrder,
    Matrix,
    solve_inside,
    solve_nested,
)

#: Exact objective of the tensors that a family acts on, under the given flat orders.
LocalObjective = Callable[[Family, Mapping[str, Tensor]], float]


class Duals(NamedTuple):
    """What a warm start needs: column prices and the columns held, both overwritten by the solver."""

    prices: NDArray[np.float64]
    held: NDArray[np.int64]


@final
class CoordinateDescent:
    """The moving state of descents on one pair of models.

    Args:
        families: What is visited.
        costs: The cost matrices.
        scales: For each root, ``Σ ‖A_T‖·‖B_T‖`` over its tensors: the size of rounding errors in its costs.
        epsilon: Rounding unit of the working dtype.
        local_objective: Needed where a family's step is only a linearisation.
        solver: Assignment solver.
        duals: Prices and columns of each group's last assignment; updated.
    """

    def __init__(  # noqa: PLR0917
        self,
        families: Sequence[Family],
        costs: CostCache,
        scales: Mapping[str, float],
        epsilon: float,
        local_objective: LocalObjective,
        solver: Solver,
        duals: dict[str, Duals],
    ) -> None:
        self.families = families
        self._costs = costs
        self._scales = scales
        self._epsilon = epsilon
        self._local_objective = local_objective
        self._solver = solver
        self._settled: set[str] = set()
        self.duals = duals
        self.flats: dict[str, Tensor] = {}

    def start(
        self, flats: Mapping[str, Tensor], *, warm: bool = False
    ) -> None:
        """Go on from ``flats``; unless ``warm``, forget the dual variables of the last descent."""
        self.flats = dict(flats)
        self._settled = set()
        if not warm:
            self.duals.clear()

    def visits(self, order: Sequence[int]) -> Iterator[float]:
        """Visit the families in ``order``; what each visit gained."""
        for number in order:
            yield self.visit(self.families[number])

    @property
    def settled(self) -> tuple[str, ...]:
        """Roots of the families that a visit would leave as they are: nothing moved that they depend on."""
        return tuple(
            family.root.id for family in self.families if self._fresh(family)
        )

    def resume(
        self, flats: Mapping[str, Tensor], settled: Iterable[str]
    ) -> None:
        """Go on where an earlier process stood.

        Args:
            flats: The orders that it had.
            settled: What it had as :attr:`settled`.
        """
        self.start(flats, warm=True)
        self._settled = set(settled)
        for family in self.families:
            if family.root.id in self._settled:
                for group in family.groups:
                    self._costs.vouch(group.id, self.flats)

    def _fresh(self, family: Family) -> bool:
        """Whether nothing moved since the last visit that could change its outcome."""
        return family.root.id in self._settled and not any(
            self._costs.stale(group.id, self.flats) for group in family.groups
        )

    def visit(self, family: Family) -> float:
        """Move one family to its best permutation; returns the gain, 0 if it stays."""
        if self._fresh(family):
            return 0.0
        self._settled.add(family.root.id)
        costs = {group.id: self._matrix(group.id) for group in family.groups}
        if family.nested:
            proposed = solve_nested(family, costs, self._solver)
        else:
            proposed = {
                family.root.id: self._solve(
                    family.root.id, costs[family.root.id]
                )
            }
        gain = self._accept(family, costs, proposed)
        if not gain and family.coupled and family.nested:
            gain = self._visit_inside(family)
        return gain

    def _visit_inside(self, family: Family) -> float:
        """Move the groups of a family one by one, their ancestors held, where the joint step did not help."""
        total = 0.0
        for group in family.groups:
            cost = self._matrix(group.id)
            if group.parent is not None:
                order = solve_inside(
                    group, cost, self.flats[group.id].numpy(), self._solver
                )
                total += self._accept(
                    family, {group.id: cost}, {group.id: order}
                )
        return total

    def _accept(
        self,
        family: Family,
        costs: Mapping[str, Matrix],
        proposed: Mapping[str, FlatOrder],
    ) -> float:
        """Take the proposed orders if the objective gains more than rounding could explain."""
        gain, moved = self._linear_gain(costs, proposed)
        if not moved:
            return 0.0
        noise = 2.0 * self._epsilon * self._scales[family.root.id] * moved
        if gain <= noise and not family.coupled:
            return 0.0
        after = dict(self.flats)
        for name, order in proposed.items():
            after[name] = torch.from_numpy(order)
        if not (family.nested or family.coupled):
            self.flats = after
            return gain
        after = _carry_children(family, self.flats, after, proposed)
        if family.coupled:
            # The step was a linearisation: only the objective itself tells.
            now = self._local_objective(family, self.flats)
            gain = self._local_objective(family, after) - now
        if gain <= noise:
            return 0.0
        for name, old in self.flats.items():
            # Costs are kept as long as the very same tensor stands here.
            if torch.equal(old, after[name]):
                after[name] = old
        self.flats = after
        return gain

    def _linear_gain(
        self, costs: Mapping[str, Matrix], proposed: Mapping[str, FlatOrder]
    ) -> tuple[float, float]:
        """What the proposed orders gain by the costs, and the largest share of a group that moves."""
        gain, moved = 0.0, 0.0
        for name, order in proposed.items():
            current, cost = self.flats[name].numpy(), costs[name]
            (rows,) = (order != current).nonzero()
            if len(rows):
                moved = max(moved, len(rows) / len(order))
                held = cost[rows, current[rows]].astype(np.float64)
                gain += float((cost[rows, order[rows]] - held).sum())
        return gain, moved

    def _matrix(self, group: str) -> Matrix:
        matrix: Matrix = self._costs.matrix(group, self.flats).cpu().numpy()
        return matrix

    def _solve(self, group: str, cost: Matrix) -> FlatOrder:
        if not uses_compiled(len(cost), self._solver):
            return solve_columns(cost, self._solver)
        warm = group in self.duals
        if not warm:
            self.duals[group] = Duals(
                np.zeros(len(cost)), np.full(len(cost), -1, np.int64)
            )
        prices, held = self.duals[group]
        solve_in_place(cost, prices, held, warm=warm)
        return held.copy()


def _carry_children(
    family: Family,
    before: Mapping[str, Tensor],
    after: dict[str, Tensor],
    proposed: Mapping[str, FlatOrder],
) -> dict[str, Tensor]:
    """Children that were not proposed keep their inner order and follow their parents."""
    for group in family.groups:
        if (
            group.parent is not None
            and group.id not in proposed
            and group.parent.id in after
        ):
            inner = before[group.id].reshape(-1, group.size) % group.size
            after[group.id] = (
                after[group.parent.id][:, None] * group.size + inner
            ).reshape(-1)
    return after
