"""Several networks under a spec with any kinds of groups: each in turn is matched to the sum of the others.

The textbook form of "merge many" (Git Re-Basin, algorithm 3) with transforms instead of permutations.  Every step
raises ``Σ_{i<j} w_i w_j ⟨T_i(Θ_i), T_j(Θ_j)⟩``; several networks serve as the frame in which the others are gathered,
and the best end is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from tqdm import tqdm

from lightning_rebasin.assignment.solve import Solver
from lightning_rebasin.matching.costs.blocks import objective_tensors
from lightning_rebasin.matching.search.general import GeneralMatcher
from lightning_rebasin.symmetry.actions.balance import (
    back_from_balance,
    balancing,
)
from lightning_rebasin.symmetry.actions.transform import Transform
from lightning_rebasin.symmetry.spec.gauge import fold
from lightning_rebasin.symmetry.spec.spec import PermutationSpec

State = Mapping[str, Tensor]
#: Most networks that serve as the frame of a start.
_MOST_FRAMES = 4
#: A sweep that gains less than this share of the objective is the last.
_LEAST_GAIN = 1e-9


@dataclass(frozen=True, eq=False)
class ManyTransforms:
    """One transform for each network, and how they were found.

    Args:
        transforms: The first only brings its network into canonical gauge: the identity unless lengths are free.
        objectives: The objective of the best start and after each sweep from there.
        starts: The objective in which each start ended.
        identity_objective: The objective of doing nothing.
    """

    transforms: tuple[Transform, ...]
    objectives: tuple[float, ...]
    starts: Mapping[str, float]
    identity_objective: float


def match_transforms(
    spec: PermutationSpec,
    states: Sequence[State | Callable[[], State]],
    weights: Sequence[float],
    *,
    seed: int,
    max_sweeps: int,
    solver: Solver,
    progress: bool,
) -> ManyTransforms:
    """Find one transform per network that brings all of them near their mean.

    Args:
        spec: What may be changed.
        states: Weights of each network, or functions that load them.
        weights: Weight of each network, summing to 1.
        seed: Seeds the order of the visits.
        max_sweeps: Most sweeps over all networks from one start.
        solver: Assignment solver.
        progress: Show a progress bar.
    """
    networks = _Networks(spec, states, weights, solver)
    identity_objective = networks.objective()
    identities = tuple(networks.transforms)
    best = identities
    objectives: tuple[float, ...] = (identity_objective,)
    starts: dict[str, float] = {}
    frames = range(min(len(states), _MOST_FRAMES))
    for frame in tqdm(
        frames, "matching many", unit="start", disable=not progress
    ):
        networks.gather(frame)
        generator = torch.Generator().manual_seed(seed)
        found = networks.improve(max_sweeps, generator)
        starts[f"frame {frame}"] = found[-1]
        if found[-1] > objectives[-1]:
            best, objectives = tuple(networks.transforms), found
    home = networks.home.compose(best[0].inverse())
    found_all = []
    for transform, canonical in zip(best, networks.canonical, strict=True):
        found_all.append(home.compose(transform).compose(canonical))
    return ManyTransforms(
        tuple(found_all), objectives, starts, identity_objective
    )


@final
class _Networks:
    """The networks with their transforms."""

    def __init__(
        self,
        spec: PermutationSpec,
        states: Sequence[State | Callable[[], State]],
        weights: Sequence[float],
        solver: Solver,
    ) -> None:
        self._spec = spec
        self._states = states
        self._weights = weights
        self._solver = solver
        self._names = objective_tensors(spec)
        self.transforms = [Transform.identity(spec)] * len(states)
        #: What balances each network, so that weights may be compared.
        self.canonical = [self._canonical(i) for i in range(len(states))]
        #: What leads from there to the lengths of the first network.
        self.home = back_from_balance(spec, fold(spec, self._given(0)))

    def objective(self) -> float:
        """``½(‖Σ w_i T_i(Θ_i)‖² − Σ w_i² ‖T_i(Θ_i)‖²)``."""
        total: dict[str, Tensor] = {}
        own = 0.0
        for i, weight in enumerate(self._weights):
            moved = self._moved(i)
            _add(total, moved, weight)
            own += weight**2 * _square(moved)
        return 0.5 * (_square(total) - own)

    def gather(self, frame: int) -> None:
        """Match each network to the sum of those before it, beginning with one."""
        order = [frame, *(i for i in range(len(self._states)) if i != frame)]
        total: dict[str, Tensor] = {}
        self.transforms[frame] = Transform.identity(self._spec)
        _add(total, self._moved(frame), self._weights[frame])
        for i in order[1:]:
            self._match(i, total, Transform.identity(self._spec))
            _add(total, self._moved(i), self._weights[i])

    def improve(
        self, max_sweeps: int, generator: torch.Generator
    ) -> tuple[float, ...]:
        """Match each network to the sum of the others until nothing is gained; the objectives on the way."""
        objectives = [self.objective()]
        for _ in range(max_sweeps):
            count = len(self._states)
            for i in torch.randperm(count, generator=generator).tolist():
                others: dict[str, Tensor] = {}
                for j in range(count):
                    if j != i:
                        _add(others, self._moved(j), self._weights[j])
                self._match(i, others, self.transforms[i])
            objectives.append(self.objective())
            gain = objectives[-1] - objectives[-2]
            if gain <= _LEAST_GAIN * abs(objectives[-1]):
                break
        return tuple(objectives)

    def _match(
        self, i: int, reference: dict[str, Tensor], start: Transform
    ) -> None:
        """Descend with one network from a transform that it keeps unless another gains."""
        state = self._load(i)
        # Buffers do not count, but a state has to be whole.
        matcher = GeneralMatcher(
            self._spec, {**state, **reference}, state, self._solver
        )
        roots = [g for g in self._spec.groups.values() if g.parent is None]
        sweeps = iter([range(len(roots))] * 100)
        self.transforms[i] = matcher.descend(start, sweeps)[0]

    def _canonical(self, i: int) -> Transform:
        state = self._given(i)
        self._spec.check_state(state, f"network {i}", finite=True)
        return balancing(self._spec, fold(self._spec, state))

    def _given(self, i: int) -> State:
        entry = self._states[i]
        return entry() if callable(entry) else entry

    def _load(self, i: int) -> State:
        """A balanced network."""
        return self.canonical[i].apply(self._given(i))

    def _moved(self, i: int) -> dict[str, Tensor]:
        """The parameters of a network in the common frame, float64."""
        state = self._load(i)
        transform = self.transforms[i]
        found = {}
        for name in self._names:
            tensor = state[name].detach().double().cpu()
            found[name] = transform.apply_to(name, tensor)
        return found


def _add(
    total: dict[str, Tensor], state: dict[str, Tensor], weight: float
) -> None:
    for name, tensor in state.items():
        known = total.get(name)
        scaled = weight * tensor
        total[name] = scaled if known is None else known + scaled


def _square(state: Mapping[str, Tensor]) -> float:
    return float(
        sum(torch.dot(t.flatten(), t.flatten()) for t in state.values())
    )
