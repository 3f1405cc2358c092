"""Matching several networks at once: one permutation per network into a common frame.

Pairwise matchings of three networks need not agree: going from A to B to C may end elsewhere than going straight.
Here each network gets one permutation into a shared *universe*, so all pairwise permutations compose consistently by
construction. What is maximised is ``Σ_{i<j} w_i w_j ⟨π_i(Θ_i), π_j(Θ_j)⟩``, which is the same as bringing all
networks near their mean.

- ``merge_many`` (Git Re-Basin, algorithm 3): networks in turn are matched to the mean of the others.  Every step
  increases the objective.
- ``cycle_consistent`` (C²M³): all permutations of all networks move together, by Frank–Wolfe steps on doubly stochastic
  matrices (:mod:`.frank_wolfe`), then the steps above until nothing improves.

Both end in the local optimum nearest to their start, so several are tried and the highest objective is kept: a first
pass that matches every network to the mean of those before it, and all networks annealed together in the frame of each
(:mod:`.joint_anneal`), which ends far higher.

The frame is that of the first network: its permutation is the identity.

Sources: Ainsworth, Hayase, Srinivasa, "Git Re-Basin", ICLR 2023; Crisostomi et al., "C²M³: Cycle-Consistent Multi-Model
Merging", NeurIPS 2024.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, Literal, final

import torch
from tqdm import tqdm

from lightning_rebasin.assignment.solve import checked_solver
from lightning_rebasin.errors import ConfigurationError, PermutationError
from lightning_rebasin.matching.importance import weighted
from lightning_rebasin.matching.many.frank_wolfe import frank_wolfe
from lightning_rebasin.matching.many.general import match_transforms
from lightning_rebasin.matching.many.joint_anneal import joint_anneal
from lightning_rebasin.matching.many.soft import SoftNetworks
from lightning_rebasin.matching.many.universe import State, Universe
from lightning_rebasin.matching.search.anneal import FAST, SLOW
from lightning_rebasin.matching.search.policy import OBVIOUS, SAME_BASIN
from lightning_rebasin.matching.search.threads import few_threads
from lightning_rebasin.symmetry.actions.permutation import Permutation
from lightning_rebasin.symmetry.actions.transform import Transform
from lightning_rebasin.symmetry.spec.spec import PermutationSpec

Method = Literal["merge_many", "cycle_consistent"]
#: A sweep that gains less than this share of what was gained in all is the last one of a start ...
_COARSE = 1e-4
#: ... and the best start goes on until a sweep gains less than this, unless the networks are so large that it costs
#: more than it can bring.
_FINE = 1e-9
#: Most networks that serve as the frame of an annealed start.
_MOST_FRAMES = 4
#: Floating-point operations that all annealed starts together may take before further frames are left out.
_BUDGET = 5e10


@dataclass(frozen=True, eq=False, repr=False)
class ManyMatchResult:
    """One permutation per network into the frame of the first.

    Args:
        transforms: What brings each network into the common frame: ``transforms[i].apply(states[i])`` are all near one
            another.
        weights: Weight of each network, summing to 1.
        objectives: ``Σ_{i<j} w_i w_j ⟨π_i(Θ_i), π_j(Θ_j)⟩`` of the best start and after each sweep from there, in
            float64.
        starts: The objective that each start ended in.
        identity_objective: The same for doing nothing.
        method: How it was maximised.
        seconds: Wall-clock time.
    """

    transforms: tuple[Transform, ...]
    weights: tuple[float, ...]
    objectives: tuple[float, ...]
    starts: Mapping[str, float]
    identity_objective: float
    method: Method
    seconds: float

    @property
    def permutations(self) -> tuple[Permutation, ...]:
        """π_i, where the spec permits nothing but permutations.

        Raises:
            PermutationError: The spec has groups of other kinds: use ``transforms``.
        """
        found = []
        for transform in self.transforms:
            if not isinstance(transform, Permutation):
                raise PermutationError(
                    "these matches are not permutations, their spec has other kinds of groups: use match.transforms"
                )
            found.append(transform)
        return tuple(found)

    @property
    def objective(self) -> float:
        """The final objective."""
        return self.objectives[-1]

    @property
    def gain(self) -> float:
        """Objective above doing nothing."""
        return self.objective - self.identity_objective

    def pairwise(self, reference: int, source: int) -> Transform:
        """What brings network ``source`` near network ``reference``, as it stands: a permutation if nothing else is.

        For all ``a, b, c``: ``pairwise(a, b).compose(pairwise(b, c)) == pairwise(a, c)``.
        """
        home = self.transforms[reference].inverse()
        return home.compose(self.transforms[source])

    def __repr__(self) -> str:
        return (
            f"ManyMatchResult({len(self.transforms)} networks by {self.method}, objective {self.objective:.6g}, "
            f"{self.gain:+.4g} over the identity, {self.seconds:.2f} s)"
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything but the permutations, as plain JSON values."""
        return {
            "method": self.method,
            "weights": list(self.weights),
            "objectives": list(self.objectives),
            "starts": dict(self.starts),
            "identity_objective": self.identity_objective,
            "moved": [dict(transform.moved) for transform in self.transforms],
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
        max_sweeps: Most sweeps over all networks from one start.
        solver: Assignment solver.
        progress: Show a progress bar.

    Returns:
        The permutations; the first is the identity.  A spec with other kinds of groups is matched by ``"merge_many"``
        whatever the method, and the result holds ``transforms``.

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
        raise ConfigurationError(
            f"method must be 'merge_many' or 'cycle_consistent', not {method!r}"
        )
    spec = spec.pin_identical_buffers(*states)
    shares = _normalised(weights, len(states))
    states = _weighted(spec, states)
    if any(group.kind != "permutation" for group in spec.groups.values()):
        many = match_transforms(
            spec,
            states,
            shares,
            seed=seed,
            max_sweeps=max_sweeps,
            solver=checked_solver(solver),
            progress=progress,
        )
        return ManyMatchResult(
            many.transforms,
            shares,
            many.objectives,
            many.starts,
            many.identity_objective,
            "merge_many",
            time.perf_counter() - begin,
        )
    universe = Universe(spec, states, shares, solver)
    identity_objective = universe.objective
    search = _Search(universe, seed, max_sweeps, identity_objective)
    with (
        few_threads(search.work),
        tqdm(desc="matching many", unit="start", disable=not progress) as bar,
    ):
        search.first_pass(bar)
        # Networks that share a basin are right where they are; all that can be won is in units that hardly matter.
        same_basin = (
            0.0 < SAME_BASIN * search.best.objectives[-1] <= identity_objective
        )
        if same_basin:
            # Gains near 1 look alike in any two networks, so look again without them: this costs two more sums.
            identities = (Permutation.identity(spec),) * len(states)
            found = universe.alike(search.best.permutations)
            same_basin = SAME_BASIN * found <= universe.alike(identities)
        if (
            not same_basin
            and search.best.objectives[-1] < OBVIOUS * universe.bound
        ):
            search.anneal(bar)
        if method == "cycle_consistent":
            search.improve_together(bar)
        search.polish(bar)
    best = search.best
    if best.objectives[-1] < identity_objective:
        identities = (Permutation.identity(spec),) * len(states)
        best = _Trace(identities, (*best.objectives, identity_objective))
    home = best.permutations[0].inverse()
    return ManyMatchResult(
        tuple(home.compose(p) for p in best.permutations),
        universe.weights,
        best.objectives,
        MappingProxyType(search.ends),
        identity_objective,
        method,
        time.perf_counter() - begin,
    )


@dataclass(frozen=True)
class _Trace:
    """Where one start led."""

    permutations: tuple[Permutation, ...]
    objectives: tuple[float, ...]


@final
class _Search:
    """Starts, and the sweeps from each until nothing improves."""

    def __init__(
        self, universe: Universe, seed: int, max_sweeps: int, floor: float
    ) -> None:
        self._u = universe
        self._seed = seed
        self._max_sweeps = max_sweeps
        self._floor = floor
        networks = SoftNetworks(universe)
        #: Floating-point operations of one visit of one network.
        self.work = max(networks.work, 1.0)
        self._soft = bool(networks.families) and not universe.large
        self._schedule = (
            FAST if 2 * SLOW.affordable(self.work) <= SLOW.sweeps else SLOW
        )
        self._generator = torch.Generator().manual_seed(seed)
        self.best = _Trace((), (-float("inf"),))
        self.ends: dict[str, float] = {}

    def first_pass(self, bar: tqdm[None]) -> None:
        """Each network to the mean of those before it."""
        self._u.gather(self._seed)
        self._finish("one after another", (), bar)

    def anneal(self, bar: tqdm[None]) -> None:
        """All networks together, in one frame after another, as far as their size allows."""
        if not self._soft:
            return
        weights, schedule = self._u.weights, self._schedule
        frames = sorted(range(len(weights)), key=lambda i: -weights[i])[
            :_MOST_FRAMES
        ]
        affordable = int(
            _BUDGET
            / (len(weights) * self.work * schedule.affordable(self.work))
        )
        for frame in frames[: max(affordable, 1)]:
            joint_anneal(self._u, frame, schedule, self._seed)
            self._finish(f"annealed together, frame {frame}", (), bar)

    def improve_together(self, bar: tqdm[None]) -> None:
        """Frank–Wolfe from the best permutations so far."""
        self._u.move(self.best.permutations)
        frank_wolfe(self._u)
        self._finish("Frank–Wolfe", self.best.objectives, bar)

    def polish(self, bar: tqdm[None]) -> None:
        """Sweep on from the best permutations until nothing improves."""
        if self._schedule is not FAST and not self._u.large:
            self._u.move(self.best.permutations)
            self._finish(
                max(self.ends, key=lambda name: self.ends[name]),
                self.best.objectives,
                bar,
                _FINE,
            )

    def _finish(
        self,
        name: str,
        before: tuple[float, ...],
        bar: tqdm[None],
        tolerance: float = _COARSE,
    ) -> None:
        objectives = [*before, self._u.objective]
        for sweep in range(self._max_sweeps):
            order = torch.randperm(
                len(self._u.weights), generator=self._generator
            ).tolist()
            objectives.append(self._u.sweep(order, self._seed + sweep))
            bar.set_postfix(start=name, objective=f"{objectives[-1]:.6g}")
            if objectives[-1] - objectives[-2] <= tolerance * abs(
                objectives[-1] - self._floor
            ):
                break
        self.ends[name] = objectives[-1]
        if objectives[-1] > self.best.objectives[-1]:
            self.best = _Trace(tuple(self._u.permutations), tuple(objectives))
        bar.update()


def _weighted(
    spec: PermutationSpec, states: Sequence[State | Callable[[], State]]
) -> Sequence[State | Callable[[], State]]:
    """The networks with what is important made longer, loaded as late as before."""
    if not any(info.importance for info in spec.tensors.values()):
        return states

    def load(entry: State | Callable[[], State]) -> State:
        return weighted(spec, entry() if callable(entry) else entry)

    return [partial(load, entry) for entry in states]


def _normalised(
    weights: Sequence[float] | None, count: int
) -> tuple[float, ...]:
    if count < 2:
        raise ConfigurationError(
            f"matching many needs at least two networks, not {count}"
        )
    if weights is None:
        return (1.0 / count,) * count
    if len(weights) != count or not all(
        0.0 < w < float("inf") for w in weights
    ):
        raise ConfigurationError(
            f"weights must be {count} positive numbers, one per network, not {list(weights)}"
        )
    return tuple(w / sum(weights) for w in weights)
