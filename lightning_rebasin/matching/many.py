"""Matching several networks at once: one permutation per network into a common frame.

Pairwise matchings of three networks need not agree: going from A to B to C may end elsewhere than going straight.
Here each network gets one permutation into a shared *universe*, so all pairwise permutations compose consistently by
construction. What is maximised is ``Σ_{i<j} w_i w_j ⟨π_i(Θ_i), π_j(Θ_j)⟩``, which is the same as bringing all
networks near their mean.

- ``merge_many`` (Git Re-Basin, algorithm 3): networks in turn are matched to the mean of the others.  Every step
  increases the objective.
- ``cycle_consistent`` (C²M³): all permutations of all networks move together, by Frank–Wolfe steps on doubly stochastic
  matrices (:mod:`.frank_wolfe`), then the steps above until nothing improves.

The frame is that of the first network: its permutation is the identity.

Sources: Ainsworth, Hayase, Srinivasa, "Git Re-Basin", ICLR 2023; Crisostomi et al., "C²M³: Cycle-Consistent Multi-Model
Merging", NeurIPS 2024.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor
from tqdm import tqdm

from lightning_rebasin.errors import ConfigurationError
from lightning_rebasin.matching.costs.blocks import objective_tensors
from lightning_rebasin.matching.objective import inner_product
from lightning_rebasin.matching.weight import WeightMatcher
from lightning_rebasin.symmetry.permutation import Permutation
from lightning_rebasin.symmetry.spec import PermutationSpec

State = Mapping[str, Tensor]
Method = Literal["merge_many", "cycle_consistent"]
#: A sweep that gains less than this share of the objective is the last one.
_TOLERANCE = 1e-9


@dataclass(frozen=True, eq=False, repr=False)
class ManyMatchResult:
    """One permutation per network into the frame of the first.

    Args:
        permutations: π_i; ``permutations[i].apply(states[i])`` are all near one another.
        weights: Weight of each network, summing to 1.
        objectives: ``Σ_{i<j} w_i w_j ⟨π_i(Θ_i), π_j(Θ_j)⟩`` after the first pass and after each further sweep, in
            float64.
        identity_objective: The same for doing nothing.
        method: How it was maximised.
        seconds: Wall-clock time.
    """

    permutations: tuple[Permutation, ...]
    weights: tuple[float, ...]
    objectives: tuple[float, ...]
    identity_objective: float
    method: Method
    seconds: float

    @property
    def objective(self) -> float:
        """The final objective."""
        return self.objectives[-1]

    @property
    def gain(self) -> float:
        """Objective above doing nothing."""
        return self.objective - self.identity_objective

    def pairwise(self, reference: int, source: int) -> Permutation:
        """The permutation that brings network ``source`` near network ``reference``, as it stands.

        For all ``a, b, c``: ``pairwise(a, b).compose(pairwise(b, c)) == pairwise(a, c)``.
        """
        return self.permutations[reference].inverse().compose(self.permutations[source])

    def __repr__(self) -> str:
        return (
            f"ManyMatchResult({len(self.permutations)} networks by {self.method}, objective {self.objective:.6g}, "
            f"{self.gain:+.4g} over the identity, {self.seconds:.2f} s)"
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything but the permutations, as plain JSON values."""
        return {
            "method": self.method,
            "weights": list(self.weights),
            "objectives": list(self.objectives),
            "identity_objective": self.identity_objective,
            "moved": [dict(p.moved) for p in self.permutations],
            "seconds": self.seconds,
        }


def match_many(
    spec: PermutationSpec,
    states: Sequence[State | Callable[[], State]],
    *,
    method: Method = "merge_many",
    weights: Sequence[float] | None = None,
    seed: int = 0,
    max_sweeps: int = 20,
    solver: str = "auto",
    progress: bool = False,
) -> ManyMatchResult:
    """Find one permutation per network that brings all of them near their mean.

    Args:
        spec: What may be permuted.
        states: Weights of each network, or functions that load them: then only one network is in memory at a time,
            beside the running sum and the mean of the others.
        method: ``"merge_many"`` or ``"cycle_consistent"``.
        weights: Positive weight of each network; equal by default.
        seed: Seeds the order of the visits.
        max_sweeps: Most sweeps over all networks.
        solver: Assignment solver.
        progress: Show a progress bar.

    Returns:
        The permutations; the first is the identity.

    Raises:
        StateDictError: A network does not fit the spec.
        NonFiniteError: A tensor holds NaN or infinity.
        ConfigurationError: Fewer than two networks, weights that do not fit, or an unknown method.

    Example:
        >>> spec = PermutationSpec.from_table({"w": ("h", None)}, {"w": (3, 1)})
        >>> base = {"w": torch.tensor([[1.0], [2.0], [4.0]])}
        >>> turned = {"w": torch.tensor([[4.0], [1.0], [2.0]])}
        >>> result = match_many(spec, [base, turned, base])
        >>> result.permutations[1]["h"].tolist(), result.pairwise(1, 2)["h"].tolist()
        ([1, 2, 0], [2, 0, 1])
    """
    begin = time.perf_counter()
    if method not in ("merge_many", "cycle_consistent"):
        raise ConfigurationError(f"method must be 'merge_many' or 'cycle_consistent', not {method!r}")
    spec = spec.pin_identical_buffers(*states)
    universe = Universe(spec, states, _normalised(weights, len(states)), solver)
    identity_objective = universe.objective
    generator = torch.Generator().manual_seed(seed)
    with tqdm(total=max_sweeps + 1, desc="matching many", unit="sweep", disable=not progress) as bar:
        universe.gather(seed)
        objectives = [universe.objective]
        bar.update()
        if method == "cycle_consistent":
            from lightning_rebasin.matching.frank_wolfe import frank_wolfe

            objectives.append(frank_wolfe(universe))
        for sweep in range(max_sweeps):
            objectives.append(universe.sweep(torch.randperm(len(states), generator=generator).tolist(), seed + sweep))
            bar.update()
            bar.set_postfix(objective=f"{objectives[-1]:.6g}")
            if objectives[-1] - objectives[-2] <= _TOLERANCE * abs(objectives[-1]):
                break
    if objectives[-1] < identity_objective:
        universe.permutations = [Permutation.identity(spec)] * len(states)
        objectives.append(identity_objective)
    home = universe.permutations[0].inverse()
    return ManyMatchResult(
        tuple(home.compose(p) for p in universe.permutations),
        universe.weights,
        tuple(objectives),
        identity_objective,
        method,
        time.perf_counter() - begin,
    )


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
        self.solver = solver
        self._states = states
        self._names = objective_tensors(spec)
        self.squares = 0.0
        for i in range(len(states)):
            state = self.load(i, checked=True)
            self.squares += weights[i] ** 2 * sum(inner_product(state[n], state[n]) for n in self._names)
        self.sum = self.summed()

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
        return 0.5 * (sum(inner_product(self.sum[n], self.sum[n]) for n in self._names) - self.squares)

    def gather(self, seed: int) -> None:
        """First pass: match each network to the mean of those before it."""
        total: dict[str, Tensor] = {}
        self._add(total, self.load(0), self.weights[0])
        for i in range(1, len(self.permutations)):
            state = self.load(i)
            found = WeightMatcher(self.spec, state, solver=self.solver).match(total, seed=seed)
            self.permutations[i] = found.permutation
            self._add(total, found.permutation.apply(state), self.weights[i])
        self.sum = total

    def sweep(self, order: Sequence[int], seed: int) -> float:
        """Match every network to the sum of the others, keeping what improves; returns the objective."""
        for i in order:
            state = self.load(i)
            others = dict(self.sum)
            self._add(others, self.permutations[i].apply(state), -self.weights[i])
            matcher = WeightMatcher(self.spec, state, solver=self.solver)
            found = matcher.match(others, self.permutations[i], seed=seed)
            self.permutations[i] = found.permutation
            self._add(others, found.permutation.apply(state), self.weights[i])
            self.sum = others
        # Adding and taking away leaves rounding errors behind: start every sweep from a clean sum.
        self.sum = self.summed()
        return self.objective

    def _add(self, total: dict[str, Tensor], state: State, weight: float) -> None:
        """``total += weight · state``; what is not floating point is taken from the first network."""
        for name, tensor in state.items():
            if not (tensor.is_floating_point() or tensor.is_complex()):
                total.setdefault(name, tensor)
                continue
            wide = tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))
            total[name] = total[name] + weight * wide if name in total else weight * wide


def _normalised(weights: Sequence[float] | None, count: int) -> tuple[float, ...]:
    if count < 2:
        raise ConfigurationError(f"matching many needs at least two networks, not {count}")
    if weights is None:
        return (1.0 / count,) * count
    if len(weights) != count or not all(0.0 < w < float("inf") for w in weights):
        raise ConfigurationError(f"weights must be {count} positive numbers, one per network, not {list(weights)}")
    return tuple(w / sum(weights) for w in weights)
