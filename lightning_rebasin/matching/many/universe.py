"""The networks of a joint matching, each with its permutation, and the weighted sum of what they are permuted to.

Everything that matches several networks at once needs one sum: the objective is half its squared norm, up to a
constant, and what one network is matched to is the sum without it.  Networks may be functions that load them, so that
few are in memory at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import final

import torch
from torch import Tensor

from lightning_rebasin.assignment.solve import checked_solver
from lightning_rebasin.matching.costs.blocks import (
    objective_tensors,
    telling_tensors,
)
from lightning_rebasin.matching.objective import inner_product
from lightning_rebasin.matching.search.memory import LARGE
from lightning_rebasin.matching.search.weight import WeightMatcher
from lightning_rebasin.symmetry.actions.permutation import Permutation
from lightning_rebasin.symmetry.spec.spec import PermutationSpec

State = Mapping[str, Tensor]


@final
class Universe:
    """The networks with their permutations and the weighted sum of what they are permuted to.

    Args:
        spec: What may be permuted.
        states: Weights of each network or functions that load them.
        weights: Weight of each network, summing to 1.
        solver: Assignment solver.
    """

    def __init__(
        self,
        spec: PermutationSpec,
        states: Sequence[State | Callable[[], State]],
        weights: tuple[float, ...],
        solver: str,
    ) -> None:
        self.spec = spec
        self.weights = weights
        self.permutations = [Permutation.identity(spec)] * len(states)
        self.solver = checked_solver(solver)
        self._states = states
        self._names = objective_tensors(spec)
        lengths: list[float] = []
        for i in range(len(states)):
            state = self.load(i, checked=True)
            lengths.append(
                weights[i]
                * sum(inner_product(state[n], state[n]) for n in self._names)
                ** 0.5
            )
        self._squares = float(sum(length**2 for length in lengths))
        #: What the objective would be if all networks pointed the same way: no permutations reach more.
        self.bound = 0.5 * (float(sum(lengths)) ** 2 - self._squares)
        self.sum = self.summed()
        #: Whether memory counts more than time.
        self.large = sum(self.sum[n].nbytes for n in self._names) >= LARGE

    def load(self, i: int, *, checked: bool = False) -> State:
        """Network number ``i`` as given."""
        entry = self._states[i]
        state = entry() if callable(entry) else entry
        if checked:
            self.spec.check_state(state, f"network {i}", finite=True)
        return state

    def summed(self) -> dict[str, Tensor]:
        """``Σ w_i π_i(Θ_i)`` over all networks; floating-point tensors in float32 or wider."""
        total: dict[str, Tensor] = {}
        for i, permutation in enumerate(self.permutations):
            self._add(total, permutation.apply(self.load(i)), self.weights[i])
        return total

    @property
    def objective(self) -> float:
        """``Σ_{i<j} w_i w_j ⟨π_i(Θ_i), π_j(Θ_j)⟩ = ½(‖Σ w_i π_i(Θ_i)‖² − Σ w_i² ‖Θ_i‖²)``."""
        return 0.5 * (
            sum(inner_product(self.sum[n], self.sum[n]) for n in self._names)
            - self._squares
        )

    def alike(self, permutations: Sequence[Permutation]) -> float:
        """The part of the objective of these permutations that tells networks apart."""
        names = telling_tensors(self.spec)
        total: dict[str, Tensor] = {}
        own = 0.0
        for i, permutation in enumerate(permutations):
            state = self.load(i)
            self._add(total, permutation.apply(state), self.weights[i])
            squares = [inner_product(state[n], state[n]) for n in names]
            own += self.weights[i] ** 2 * sum(squares)
        together = sum(inner_product(total[n], total[n]) for n in names)
        return 0.5 * (together - own)

    def move(self, permutations: Sequence[Permutation]) -> None:
        """Take these permutations instead."""
        self.permutations = list(permutations)
        self.sum = self.summed()

    def gather(self, seed: int) -> None:
        """First pass: match each network to the mean of those before it."""
        total: dict[str, Tensor] = {}
        self._add(total, self.load(0), self.weights[0])
        for i in range(1, len(self.permutations)):
            state = self.load(i)
            found = WeightMatcher(self.spec, state, solver=self.solver).match(
                total, seed=seed
            )
            self.permutations[i] = found.permutation
            self._add(total, found.permutation.apply(state), self.weights[i])
        self.sum = total

    def sweep(self, order: Sequence[int], seed: int) -> float:
        """Match every network to the sum of the others, keeping what improves; returns the objective."""
        for i in order:
            state = self.load(i)
            others = dict(self.sum)
            self._add(
                others, self.permutations[i].apply(state), -self.weights[i]
            )
            matcher = WeightMatcher(self.spec, state, solver=self.solver)
            found = matcher.match(others, self.permutations[i], seed=seed)
            self.permutations[i] = found.permutation
            self._add(others, found.permutation.apply(state), self.weights[i])
            self.sum = others
        # Adding and taking away leaves rounding errors behind: start every sweep from a clean sum.
        self.sum = self.summed()
        return self.objective

    def _add(
        self, total: dict[str, Tensor], state: State, weight: float
    ) -> None:
        """``total += weight · state``; what is not floating point is taken from the first network."""
        for name, tensor in state.items():
            if not (tensor.is_floating_point() or tensor.is_complex()):
                total.setdefault(name, tensor)
                continue
            wide = tensor.detach().to(
                torch.promote_types(tensor.dtype, torch.float32)
            )
            total[name] = (
                total[name] + weight * wide if name in total else weight * wide
            )
