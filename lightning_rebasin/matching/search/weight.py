"""Weight matching: the permutation of a source network that brings its weights nearest to a reference.

Maximises ``Σ ⟨A, π(B)⟩`` over all parameters, which is the same as minimising ``‖A − π(B)‖``, by permutation coordinate
descent.  The problem is NP-hard and a single descent may end in a poor local optimum, even below doing nothing; the
default call therefore descends from several starts, keeps the best by its float64 objective, and never returns anything
below the identity.

Source: Ainsworth, Hayase, Srinivasa, "Git Re-Basin", ICLR 2023, algorithm 1 (arXiv 2209.04836).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from typing import cast, final

import torch
from torch import Tensor
from tqdm import tqdm

from lightning_rebasin.assignment.solve import checked_solver
from lightning_rebasin.matching.importance import weighted
from lightning_rebasin.matching.result import MatchResult, MatchState
from lightning_rebasin.matching.search.anneal import SLOW
from lightning_rebasin.matching.search.general import GeneralInit
from lightning_rebasin.matching.search.generally import match_generally
from lightning_rebasin.matching.search.journal import Journal
from lightning_rebasin.matching.search.pair import Pair, Source
from lightning_rebasin.matching.search.policy import (
    Init,
    VisitOrder,
    check_options,
    orders,
    plan,
)
from lightning_rebasin.matching.search.threads import few_threads
from lightning_rebasin.symmetry.actions.permutation import Permutation
from lightning_rebasin.symmetry.actions.transform import Transform
from lightning_rebasin.symmetry.edit.permuting import permuting
from lightning_rebasin.symmetry.edit.restrict import restrict
from lightning_rebasin.symmetry.spec.spec import PermutationSpec


def match_weights(
    spec: PermutationSpec,
    reference: Mapping[str, Tensor],
    source: Mapping[str, Tensor],
    *,
    seed: int = 0,
    init: Init | Transform | None = None,
    restarts: int | None = None,
    max_sweeps: int = 100,
    solver: str = "auto",
    progress: bool = False,
    journal: Journal | None = None,
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
        journal: Keeps where the matching stands, so that another process can go on from there
            (:mod:`~lightning_rebasin.matching.search.journal`); only permutations are kept, other kinds begin again.

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
    reference, source = weighted(pinned, reference), weighted(pinned, source)
    if isinstance(init, Transform):
        init = restrict(init, spec, pinned)
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
            order=partial(
                _best_order,
                pinned,
                seed=seed,
                solver=solver,
                progress=progress,
            ),
        )
    return WeightMatcher(pinned, source, solver=solver).match(
        reference,
        cast("Init | None", init),
        seed=seed,
        restarts=restarts,
        max_sweeps=max_sweeps,
        progress=progress,
        journal=journal,
    )


def _best_order(
    spec: PermutationSpec,
    reference: Mapping[str, Tensor],
    source: Mapping[str, Tensor],
    init: Transform | None,
    *,
    seed: int,
    solver: str,
    progress: bool,
) -> Transform:
    """The permutations of a spec with other kinds that bring two networks nearest, by the engine for permutations."""
    orders = permuting(spec)
    if not orders.groups:
        return Transform.identity(spec)
    matcher = WeightMatcher(orders, source, solver=solver)
    start = None
    if init is not None:
        # Of the elements, the orders alone.
        start = Permutation.of(
            orders, {name: init.elements[name] for name in orders.groups}
        )
    found = matcher.match(reference, start, seed=seed, progress=progress)
    return Transform.of(spec, found.transform.elements)


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
        self._source = Source(spec, source, solver, device)

    @property
    def state(self) -> MatchState | None:
        """Where the current or last descent stands after its last whole sweep: what to go on from when interrupted."""
        return self._source.state

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
        journal: Journal | None = None,
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
            journal: As in :func:`match_weights`.

        Returns:
            The best permutation found.

        Raises:
            StateDictError: A tensor is missing, extra or has another shape.
            NonFiniteError: A tensor holds NaN or infinity.
            ConfigurationError: An option has a value that cannot work.
        """
        begin = time.perf_counter()
        check_options(self.spec, init, restarts, max_sweeps, order)
        pair = Pair(
            self._source,
            reference,
            seed,
            max_sweeps,
            journal=journal,
            progress=progress,
        )
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
                if init is None and (pair.obvious or pair.proved):
                    break
        result = pair.result(begin, choose_basin=init is None)
        pair.close()
        return result
