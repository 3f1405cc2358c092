"""Weight matching: the permutation of a source network that brings its weights nearest to a reference.

Maximises ``Σ ⟨A, π(B)⟩`` over all parameters, which is the same as minimising ``‖A − π(B)‖``, by permutation coordinate
descent.  The problem is NP-hard and a single descent may end in a poor local optimum, even below doing nothing; the
default call therefore descends from several starts, keeps the best by its float64 objective, and never returns anything
below the identity.

Source: Ainsworth, Hayase, Srinivasa, "Git Re-Basin", ICLR 2023, algorithm 1 (arXiv 2209.04836).
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
from lightning_rebasin.matching.search.general import (
    GeneralInit,
    match_generally,
)
from lightning_rebasin.matching.search.memory import (
    LARGE,
    return_large_blocks,
)
from lightning_rebasin.matching.search.policy import (
    OBVIOUS,
    SAME_BASIN,
    Init,
    Start,
    VisitOrder,
    check_options,
    orders,
    plan,
)
from lightning_rebasin.matching.search.threads import few_threads
from lightning_rebasin.matching.steps.permutation import Family, families_of
from lightning_rebasin.symmetry.actions.permutation import Permutation
from lightning_rebasin.symmetry.edit.restrict import restrict
from lightning_rebasin.symmetry.spec.spec import PermutationSpec

#: In one basin, a gain below this share of the objective comes from units that hardly matter: leave them in place.
_NEGLIGIBLE = 0.005


def match_weights(
    spec: PermutationSpec,
    reference: Mapping[str, Tensor],
    source: Mapping[str, Tensor],
    *,
    seed: int = 0,
    init: Init | None = None,
    restarts: int | None = None,
    max_sweeps: int = 100,
    solver: str = "auto",
    progress: bool = False,
) -> MatchResult:
    """Find the permutation ``p`` for which ``p.apply(source)`` is nearest to ``reference``.

    Args:
        spec: What may be permuted.
        reference: Weights A: exactly the tensors of the spec, any floating dtype, any device.
        source: Weights B, likewise; never written to.
        seed: Seeds every random choice; the same seed gives the same result.
        init: ``None`` for the default policy (identity and annealed starts), ``"identity"``, ``"random"``, a
            permutation to start from (left alone), or the ``state`` of an earlier result to go on from.
        restarts: Number of descents; by default 3, or one if ``init`` is given.
        max_sweeps: Most sweeps over all groups in one descent.
        solver: Assignment solver, see :func:`~lightning_rebasin.assignment.solve_assignment`.
        progress: Show a progress bar with sweep and objective.

    Returns:
        The best permutation found, with its report.  Its objective is never below the identity's.  Its spec pins what
        would move a buffer that is the same in both networks (``spec.pin_identical_buffers``).

    Raises:
        StateDictError: A tensor is missing, extra or has another shape.
        NonFiniteError: A tensor holds NaN or infinity.
        ConfigurationError: An option has a value that cannot work.

    Example:
        >>> spec = PermutationSpec.from_table({"w": ("h", None), "v": (None, "h")}, {"w": (3, 1), "v": (1, 3)})
        >>> a = {"w": torch.tensor([[1.0], [2.0], [3.0]]), "v": torch.tensor([[4.0, 5.0, 6.0]])}
        >>> b = {"w": torch.tensor([[3.0], [1.0], [2.0]]), "v": torch.tensor([[6.0, 4.0, 5.0]])}
        >>> result = match_weights(spec, a, b, init="identity")
        >>> result.permutation["h"].tolist(), result.objective, result.identity_objective
        ([1, 2, 0], 91.0, 85.0)
    """
    pinned = spec.pin_identical_buffers(reference, source)
    if any(group.kind != "permutation" for group in pinned.groups.values()):
        # Other kinds have a slower engine, which knows nothing about any of them.
        check_options(pinned, None, restarts, max_sweeps, None)
        roots = sum(group.parent is None for group in pinned.groups.values())
        return match_generally(
            pinned,
            reference,
            source,
            init=cast("GeneralInit | None", init),
            restarts=restarts,
            sweeps=lambda generator: orders(
                "random", roots, max_sweeps, generator
            ),
            seed=seed,
            solver=checked_solver(solver),
            progress=progress,
        )
    if isinstance(init, Permutation):
        init = restrict(init, spec, pinned)
    return WeightMatcher(pinned, source, solver=solver).match(
        reference,
        init,
        seed=seed,
        restarts=restarts,
        max_sweeps=max_sweeps,
        progress=progress,
    )


@final
class WeightMatcher:
    """Weight matching of one fixed source against references that may change from call to call.

    Keeps what depends on the source alone (its contiguous layouts) and the dual variables of the last assignments, so
    that matching a slowly moving reference, as the straight-through estimator does every step, costs little more than
    the matrix products.

    Args:
        spec: What may be permuted.
        source: Weights B; not copied where a view will do, so do not write to them while the matcher is in use.
        solver: Assignment solver.
        device: Where the costs are built; by default where the source is.

    Raises:
        StateDictError: A tensor is missing, extra or has another shape.
        NonFiniteError: A tensor holds NaN or infinity.
        ConfigurationError: An unknown solver.
    """

    def __init__(
        self,
        spec: PermutationSpec,
        source: Mapping[str, Tensor],
        *,
        solver: str = "auto",
        device: torch.device | str | None = None,
    ) -> None:
        self.spec = spec
        self._names = objective_tensors(spec)
        self._source = _checked(spec, source, "source", self._names)
        self._dtype = _working_dtype(self._source.tensors.values())
        first = next(iter(self._source.tensors.values()), torch.empty(0))
        self._device = (
            torch.device(device) if device is not None else first.device
        )
        self._table = TermTable.of(spec)
        size = (
            sum(tensor.numel() for tensor in self._source.tensors.values())
            * self._dtype.itemsize
        )
        self._frugal = size >= LARGE
        if self._frugal:
            return_large_blocks()
        self._layouts = self._layouts_of(self._source)
        self._families = families_of(spec, self._table.coupled)
        self._solver = checked_solver(solver)
        self._duals: dict[str, Duals] = {}
        #: Where the current or last descent stands after its last whole sweep: what to go on from after an
        #: interruption.
        self.state: MatchState | None = None

    def match(
        self,
        reference: Mapping[str, Tensor],
        init: Init | None = None,
        *,
        seed: int = 0,
        restarts: int | None = None,
        max_sweeps: int = 100,
        order: VisitOrder | None = None,
        progress: bool = False,
    ) -> MatchResult:
        """Match the source to ``reference``.

        Args:
            reference: Weights A.
            init: As in :func:`match_weights`.  A permutation keeps the dual variables of the last call warm.
            seed: Seeds every random choice.
            restarts: Number of descents.
            max_sweeps: Most sweeps in one descent.
            order: Order of the visits in a sweep; by default the policy's choice.
            progress: Show a progress bar.

        Returns:
            The best permutation found.

        Raises:
            StateDictError: A tensor is missing, extra or has another shape.
            NonFiniteError: A tensor holds NaN or infinity.
            ConfigurationError: An option has a value that cannot work.
        """
        begin = time.perf_counter()
        check_options(self.spec, init, restarts, max_sweeps, order)
        pair = _Pair(self, reference, seed, max_sweeps)
        starts = plan(init, restarts, order)
        if init is None and restarts is None and pair.costly:
            starts = tuple(
                start
                for start in starts
                if start.schedule is not SLOW or start.kind != "annealed"
            )
        with (
            few_threads(pair.work),
            tqdm(
                total=len(starts),
                desc="weight matching",
                unit="descent",
                disable=not progress,
            ) as bar,
        ):
            for start in starts:
                pair.descend(start, init, bar)
                bar.update()
                if init is None and pair.obvious:
                    break
        result = pair.result(begin, choose_basin=init is None)
        pair.close()
        return result

    def _layouts_of(self, model: Parameters) -> Layouts:
        return Layouts(
            model.tensors,
            self._dtype,
            self._device,
            keep=not self._frugal,
            small=model.small,
        )


@final
class _Pair:
    """The descents of one call: one reference, the matcher's source."""

    def __init__(
        self,
        matcher: WeightMatcher,
        reference: Mapping[str, Tensor],
        seed: int,
        max_sweeps: int,
    ) -> None:
        self._m = matcher
        self._reference = _checked(
            matcher.spec, reference, "reference", matcher._names
        )
        self._max_sweeps = max_sweeps
        self._generator = torch.Generator().manual_seed(seed)
        layouts = matcher._layouts_of(self._reference)
        self._costs = CostCache(
            matcher._table,
            layouts,
            matcher._layouts,
            matcher._dtype,
            matcher._device,
        )
        scales = dict.fromkeys(
            (family.root.id for family in matcher._families), 0.0
        )
        for name in matcher._names:
            for root in matcher._table.roots_of(name):
                scales[root] += (
                    self._reference.norms[name] * matcher._source.norms[name]
                )
        epsilon = torch.finfo(matcher._dtype).eps
        self._run = CoordinateDescent(
            matcher._families,
            self._costs,
            scales,
            epsilon,
            self._local_objective,
            matcher._solver,
            matcher._duals,
        )
        self._identity = Permutation.identity(matcher.spec)
        self._at_identity = self._products(None)
        self._telling = telling_tensors(matcher.spec)
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
            for of in (self._reference, self._m._source)
        )
        return self._alike(self._at_identity) > OBVIOUS * a * b > 0.0

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
        begin = time.perf_counter()
        first, warm, sweeps = self._begin(start, init)
        self._run.start(
            {group: first.flat(group) for group in self._m.spec.groups},
            warm=warm,
        )
        gains: list[float] = []
        for order in orders(
            start.order,
            len(self._m._families),
            self._max_sweeps,
            self._generator,
        ):
            gains.append(self._run.sweep(order))
            sweeps += 1
            self._m.state = self._state(sweeps)
            if not bar.disable:
                bar.set_postfix(
                    start=start.name,
                    sweep=sweeps,
                    gain=f"{gains[-1]:.3g}",
                    best=f"{self._best[2]:.6g}",
                )
            if not gains[-1]:
                break
        assert self._m.state is not None
        permutation = self._m.state.permutation
        products = self._products(permutation)
        objectives = [sum(products.values())]
        for gain in reversed(gains):
            objectives.append(objectives[-1] - gain)
        seconds = time.perf_counter() - begin
        self._descents.append(
            Descent(
                start.name, tuple(reversed(objectives)), not gains[-1], seconds
            )
        )
        if objectives[0] > self._best[2]:
            self._best = (permutation, products, objectives[0])
        if start.kind == "identity" and objectives[0] > self._from_identity[2]:
            self._from_identity = (permutation, products, objectives[0])

    def result(self, begin: float, *, choose_basin: bool) -> MatchResult:
        """The best permutation found and the report."""
        m = self._m
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
        norms = (self._reference.norms, m._source.norms)
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
        del self._run, self._costs

    def _begin(
        self, start: Start, init: Init | None
    ) -> tuple[Permutation, bool, int]:
        """Where the descent starts, whether the dual variables may be kept, and the sweeps done before."""
        spec = self._m.spec
        if start.kind == "identity":
            return self._identity, False, 0
        if start.kind == "random":
            return Permutation.random(spec, self._generator), False, 0
        if start.kind == "annealed":
            self._costs.forget()  # nothing of it would be of use to a descent from elsewhere
            annealing = Annealing(
                self._m._families,
                self._costs,
                start.schedule,
                self._generator,
                self._m._solver,
            )
            return Permutation.from_flat(spec, annealing.run()), False, 0
        if isinstance(init, MatchState):
            self._generator.set_state(init.generator)
            self._m._duals.update(
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
            for group, (prices, held) in self._m._duals.items()
        }
        return MatchState(
            self._m.spec,
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
            self._m.spec, self._reference, self._m._source, permutation, names
        )

    def _local_objective(
        self, family: Family, flats: Mapping[str, Tensor]
    ) -> float:
        permutation = Permutation.from_flat(self._m.spec, flats)
        return sum(
            self._products(
                permutation, self._m._table.tensors_of(family.root.id)
            ).values()
        )


def _checked(
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
