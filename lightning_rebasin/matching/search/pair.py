"""The descents of one call of weight matching, and what of the source they share.

A :class:`Source` keeps what does not depend on the reference, from call to call; a :class:`Pair` runs the descents to
one reference, remembers the best, and decides whether the two networks share a basin.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from typing import Literal, cast, final

import torch
from torch import Tensor
from tqdm import tqdm

from lightning_rebasin.assignment.solve import checked_solver
from lightning_rebasin.matching.costs.blocks import (
    objective_tensors,
    telling_tensors,
)
from lightning_rebasin.matching.costs.cache import CostCache, TermTable
from lightning_rebasin.matching.costs.layouts import Layouts
from lightning_rebasin.matching.objective import (
    group_similarity,
    inner_products,
)
from lightning_rebasin.matching.parameters import Parameters
from lightning_rebasin.matching.result import Descent, MatchResult, MatchState
from lightning_rebasin.matching.search.anneal import SLOW, Annealing
from lightning_rebasin.matching.search.descent import CoordinateDescent, Duals
from lightning_rebasin.matching.search.journal import (
    Ended,
    Journal,
    NoJournal,
    Standing,
)
from lightning_rebasin.matching.search.memory import (
    LARGE,
    return_large_blocks,
)
from lightning_rebasin.matching.search.policy import (
    OBVIOUS,
    PROVED,
    SAME_BASIN,
    Init,
    Start,
)
from lightning_rebasin.matching.search.walk import Walk
from lightning_rebasin.matching.steps.permutation import Family, families_of
from lightning_rebasin.symmetry.actions.permutation import Permutation
from lightning_rebasin.symmetry.spec.spec import PermutationSpec

#: In one basin, a gain below this share of the objective comes from units that hardly matter: leave them in place.
_NEGLIGIBLE = 0.005


@final
class Source:
    """What depends on the source alone, and moves on from call to call.

    Args:
        spec: What may be permuted.
        weights: Weights B.
        solver: Assignment solver.
        device: Where the costs are built; by default where the source is.
    """

    def __init__(
        self,
        spec: PermutationSpec,
        weights: Mapping[str, Tensor],
        solver: str,
        device: torch.device | str | None,
    ) -> None:
        self.spec = spec
        #: Tensors that count in the objective.
        self.names = objective_tensors(spec)
        self.parameters = checked(spec, weights, "source", self.names)
        tensors = self.parameters.tensors.values()
        #: Working dtype.
        self.dtype = _working_dtype(tensors)
        first = next(iter(tensors), torch.empty(0))
        #: Where the costs are built.
        self.device = first.device if device is None else torch.device(device)
        self.table = TermTable.of(spec)
        numbers = sum(tensor.numel() for tensor in tensors)
        self._frugal = numbers * self.dtype.itemsize >= LARGE
        if self._frugal:
            return_large_blocks()
        self.layouts = self.layouts_of(self.parameters)
        self.families = families_of(spec, self.table.coupled)
        self.solver = checked_solver(solver)
        #: Prices and columns of the last assignments.
        self.duals: dict[str, Duals] = {}
        #: Where the current or last descent stands after its last whole sweep.
        self.state: MatchState | None = None

    def layouts_of(self, model: Parameters) -> Layouts:
        """How the blocks of a model lie in memory; nothing is kept for very large ones."""
        return Layouts(
            model.tensors,
            self.dtype,
            self.device,
            keep=not self._frugal,
            small=model.small,
        )


@final
class Pair:
    """The descents of one call.

    Args:
        source: The source.
        reference: Weights A.
        seed: Seeds every random choice.
        max_sweeps: Most sweeps in one descent.
        journal: Keeps where the descents stand, and knows where an earlier process stood.
        progress: Show a progress bar for each sweep.
    """

    def __init__(
        self,
        source: Source,
        reference: Mapping[str, Tensor],
        seed: int,
        max_sweeps: int,
        *,
        journal: Journal | None = None,
        progress: bool = False,
    ) -> None:
        self._source = source
        self._reference = checked(
            source.spec, reference, "reference", source.names
        )
        self._max_sweeps = max_sweeps
        self._generator = torch.Generator().manual_seed(seed)
        layouts = source.layouts_of(self._reference)
        self._costs = CostCache(
            source.table,
            layouts,
            source.layouts,
            source.dtype,
            source.device,
        )
        scales = dict.fromkeys(
            (family.root.id for family in source.families), 0.0
        )
        for name in source.names:
            for root in source.table.roots_of(name):
                scales[root] += (
                    self._reference.norms[name] * source.parameters.norms[name]
                )
        epsilon = torch.finfo(source.dtype).eps
        self._run = CoordinateDescent(
            source.families,
            self._costs,
            scales,
            epsilon,
            self._local_objective,
            source.solver,
            source.duals,
        )
        journal = journal or NoJournal()
        self._walk = Walk(
            self._run, self._generator, journal, progress=progress
        )
        self._earlier = journal.read()
        if self._earlier is not None:
            self._walk.ended.extend(self._earlier.ended)
            self._generator.set_state(self._earlier.generator)
        self._identity = Permutation.identity(source.spec)
        self._at_identity = self._products(None)
        self._telling = telling_tensors(source.spec)
        self._best = (
            self._identity,
            self._at_identity,
            sum(self._at_identity.values()),
        )
        self._from_identity = self._best
        self._descents: list[Descent] = []

    @property
    def obvious(self) -> bool:
        """Whether the two networks are so alike that no other permutation can be far better."""
        a, b = (
            math.hypot(*(of.norms[name] for name in self._telling))
            for of in (self._reference, self._source.parameters)
        )
        return self._alike(self._at_identity) > OBVIOUS * a * b > 0.0

    @property
    def proved(self) -> bool:
        """Whether the best objective found is as large as any could be for weights of these norms, up to rounding."""
        a, b = self._reference.norms, self._source.parameters.norms
        largest = sum(a[name] * b[name] for name in self._source.names)
        return self._best[2] >= PROVED * largest > 0.0

    def _alike(self, products: Mapping[str, float]) -> float:
        """The part of an objective that tells networks apart."""
        return sum(products[name] for name in self._telling)

    @property
    def costly(self) -> bool:
        """Whether the networks are too large for a slow annealed start."""
        return 2 * SLOW.affordable(self._costs.soft_work) <= SLOW.sweeps

    @property
    def work(self) -> float:
        """Floating-point operations of one sweep."""
        return self._costs.soft_work

    def descend(
        self, start: Start, init: Init | None, bar: tqdm[None]
    ) -> None:
        """Run one descent and keep its end if it is the best so far."""
        number = len(self._descents)
        if number == len(self._walk.ended):
            standing, sweeps = self._begin_or_resume(start, init)
            for gains in self._walk.sweeps(start, standing, self._max_sweeps):
                done = sweeps + len(gains) - len(standing.gains)
                self._source.state = self._state(done)
                if not bar.disable:
                    bar.set_postfix(
                        start=start.name,
                        sweep=done,
                        gain=f"{gains[-1]:.3g}",
                        best=f"{self._best[2]:.6g}",
                    )
        # Otherwise an earlier process came to this end.
        self._keep(self._walk.ended[number], start)

    def _begin_or_resume(
        self, start: Start, init: Init | None
    ) -> tuple[Standing, int]:
        """Where the descent stands before its first visit, and the sweeps done before."""
        earlier, self._earlier = self._earlier, None
        if earlier is not None and earlier.flats:
            self._walk.resume(earlier)
            return earlier, len(earlier.gains)
        first, warm, sweeps = self._begin(start, init)
        self._run.start(
            {group: first.flat(group) for group in self._source.spec.groups},
            warm=warm,
        )
        return Standing((), self._generator.get_state()), sweeps

    def _keep(self, ended: Ended, start: Start) -> None:
        """Write the end of a descent down, and remember it if it is the best."""
        permutation = Permutation.from_flat(self._source.spec, ended.flats)
        products = self._products(permutation)
        objectives = [sum(products.values())]
        for gain in reversed(ended.gains):
            objectives.append(objectives[-1] - gain)
        self._descents.append(
            Descent(
                start.name,
                tuple(reversed(objectives)),
                ended.converged,
                ended.seconds,
            )
        )
        if objectives[0] > self._best[2]:
            self._best = (permutation, products, objectives[0])
        if start.kind == "identity" and objectives[0] > self._from_identity[2]:
            self._from_identity = (permutation, products, objectives[0])

    def result(self, begin: float, *, choose_basin: bool) -> MatchResult:
        """The best permutation found and the report."""
        m = self._source
        at_identity = sum(self._at_identity.values())
        permutation, products, best = self._best
        alike = self._alike(self._at_identity)
        same_basin = alike > 0.0 and alike >= SAME_BASIN * self._alike(
            products
        )
        if same_basin and choose_basin:
            permutation, products, best = self._from_identity
            if best - at_identity < _NEGLIGIBLE * best:
                permutation, products, best = (
                    self._identity,
                    self._at_identity,
                    at_identity,
                )
        norms = (self._reference.norms, m.parameters.norms)
        a, b = (sum(norm**2 for norm in of.values()) ** 0.5 for of in norms)
        return MatchResult(
            transform=permutation,
            objective=best,
            identity_objective=at_identity,
            descents=tuple(self._descents),
            similarity=group_similarity(m.spec, products, norms),
            identity_similarity=group_similarity(
                m.spec, self._at_identity, norms
            ),
            norms=(a, b),
            same_basin=same_basin,
            seconds=time.perf_counter() - begin,
            state=m.state,
        )

    def close(self) -> None:
        """Free matrices and layouts now: the descent refers back to this object, and the garbage collector is late."""
        del self._run, self._costs, self._walk

    def _begin(
        self, start: Start, init: Init | None
    ) -> tuple[Permutation, bool, int]:
        """Where the descent starts, whether the dual variables may be kept, and the sweeps done before."""
        spec = self._source.spec
        if start.kind == "identity":
            return self._identity, False, 0
        if start.kind == "random":
            return Permutation.random(spec, self._generator), False, 0
        if start.kind == "annealed":
            self._costs.forget()  # nothing of it would be of use to a descent from elsewhere
            annealing = Annealing(
                self._source.families,
                self._costs,
                start.schedule,
                self._generator,
                self._source.solver,
            )
            return Permutation.from_flat(spec, annealing.run()), False, 0
        if isinstance(init, MatchState):
            self._generator.set_state(init.generator)
            self._source.duals.update(
                {
                    group: Duals(p.copy(), held.copy())
                    for group, (p, held) in init.duals.items()
                }
            )
            return init.permutation, True, init.sweeps
        return cast(Permutation, init), True, 0

    def _state(self, sweeps: int) -> MatchState:
        duals = {
            group: (prices.copy(), held.copy())
            for group, (prices, held) in self._source.duals.items()
        }
        return MatchState(
            self._source.spec,
            dict(self._run.flats),
            duals,
            self._generator.get_state(),
            sweeps,
        )

    def _products(
        self,
        permutation: Permutation | None,
        names: Iterable[str] | None = None,
    ) -> dict[str, float]:
        return inner_products(
            self._source.spec,
            self._reference,
            self._source.parameters,
            permutation,
            names,
        )

    def _local_objective(
        self, family: Family, flats: Mapping[str, Tensor]
    ) -> float:
        permutation = Permutation.from_flat(self._source.spec, flats)
        return sum(
            self._products(
                permutation, self._source.table.tensors_of(family.root.id)
            ).values()
        )


def checked(
    spec: PermutationSpec,
    state: Mapping[str, Tensor],
    what: Literal["reference", "source"],
    names: Iterable[str],
) -> Parameters:
    """The parameters of the objective; refuses a state that does not fit or is not finite."""
    spec.check_state(state, what)
    parameters = Parameters(state, names)
    # A norm is finite exactly if all entries are, and cheaper than looking at each: look only to name the culprit.
    if not all(math.isfinite(norm) for norm in parameters.norms.values()):
        spec.check_state(state, what, finite=True)
    return parameters


def _working_dtype(tensors: Iterable[Tensor]) -> torch.dtype:
    wide = any(t.dtype in (torch.float64, torch.complex128) for t in tensors)
    return torch.float64 if wide else torch.float32
