"""Weight matching: the permutation of a source network that brings its weights nearest to a reference.

Maximises ``Σ ⟨A, π(B)⟩`` over all parameters, which is the same as minimising ``‖A − π(B)‖``, by permutation coordinate
descent.  The problem is NP-hard and a single descent may end in a poor local optimum, even below doing nothing; the default
call therefore runs several descents from different starts and in different orders, keeps the best by its float64 objective,
and never returns anything below the identity.

Source: Ainsworth, Hayase, Srinivasa, "Git Re-Basin", ICLR 2023, algorithm 1 (arXiv 2209.04836).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Literal, final

import torch
from torch import Tensor
from tqdm import tqdm

from lightning_rebasin.errors import ConfigurationError, PermutationError
from lightning_rebasin.matching.costs.blocks import objective_tensors
from lightning_rebasin.matching.costs.cache import CostCache, TermTable
from lightning_rebasin.matching.costs.layouts import Layouts
from lightning_rebasin.matching.descent import CoordinateDescent
from lightning_rebasin.matching.families import Family, families_of
from lightning_rebasin.matching.objective import objective
from lightning_rebasin.matching.result import Descent, MatchResult
from lightning_rebasin.matching.similarity import similarities
from lightning_rebasin.symmetry.permutation import Permutation
from lightning_rebasin.symmetry.spec import PermutationSpec

Start = Literal["identity", "random"]
Order = Literal["random", "forward", "backward", "alternating"]


def match_weights(
    spec: PermutationSpec,
    reference: Mapping[str, Tensor],
    source: Mapping[str, Tensor],
    *,
    seed: int = 0,
    init: Start | Permutation | None = None,
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
        init: ``None`` for the default policy (several starts and orders), ``"identity"``, ``"random"``, or a permutation to
            start from (left alone).
        restarts: Number of descents; by default as many as the policy needs, one if ``init`` is given.
        max_sweeps: Most sweeps over all groups in one descent.
        solver: Assignment solver, see :func:`~lightning_rebasin.assignment.solve_assignment`.
        progress: Show a progress bar with sweep and objective.

    Returns:
        The best permutation found, with its report.  Its objective is never below the identity's.

    Raises:
        StateDictError: A tensor is missing, extra or has another shape.
        NonFiniteError: A tensor holds NaN or infinity.
        ConfigurationError: An option has a value that cannot work.

    Example:
        >>> spec = PermutationSpec.from_table({"w": ("h", None), "v": (None, "h")}, {"w": (3, 1), "v": (1, 3)})
        >>> a = {"w": torch.tensor([[1.0], [2.0], [3.0]]), "v": torch.tensor([[4.0, 5.0, 6.0]])}
        >>> b = {"w": torch.tensor([[3.0], [1.0], [2.0]]), "v": torch.tensor([[6.0, 4.0, 5.0]])}
        >>> result = match_weights(spec, a, b)
        >>> result.permutation["h"].tolist(), result.objective, result.identity_objective
        ([1, 2, 0], 91.0, 85.0)
    """
    return WeightMatcher(spec, source, solver=solver).match(
        reference, init, seed=seed, restarts=restarts, max_sweeps=max_sweeps, progress=progress
    )


@final
class WeightMatcher:
    """Weight matching of one fixed source against references that may change from call to call.

    Keeps what depends on the source alone (its contiguous layouts) and the dual variables of the last assignments, so that
    matching a slowly moving reference, as the straight-through estimator does every step, costs little more than the matrix
    products.

    Args:
        spec: What may be permuted.
        source: Weights B; not copied where a view will do, so do not write to them while the matcher is in use.
        solver: Assignment solver.
        device: Where the costs are built; by default where the source is.

    Raises:
        StateDictError: A tensor is missing, extra or has another shape.
        NonFiniteError: A tensor holds NaN or infinity.
    """

    def __init__(
        self,
        spec: PermutationSpec,
        source: Mapping[str, Tensor],
        *,
        solver: str = "auto",
        device: torch.device | str | None = None,
    ) -> None:
        spec.check_state(source, "source", finite=True)
        self.spec = spec
        self._source = {name: tensor.detach() for name, tensor in source.items()}
        self._names = objective_tensors(spec)
        self._dtype = _working_dtype(self._source[name] for name in self._names)
        first = next(iter(self._source.values()), torch.empty(0))
        self._device = torch.device(device) if device is not None else first.device
        self._table = TermTable(spec)
        self._layouts = Layouts(self._source, self._dtype, self._device)
        self._families = families_of(spec, self._table.coupled)
        self._norms = {name: float(torch.linalg.vector_norm(self._source[name].double())) for name in self._names}
        self._solver = solver

    def match(
        self,
        reference: Mapping[str, Tensor],
        init: Start | Permutation | None = None,
        *,
        seed: int = 0,
        restarts: int | None = None,
        max_sweeps: int = 100,
        order: Order | None = None,
        progress: bool = False,
    ) -> MatchResult:
        """Match the source to ``reference``.

        Args:
            reference: Weights A.
            init: As in :func:`match_weights`.
            seed: Seeds every random choice.
            restarts: Number of descents.
            max_sweeps: Most sweeps in one descent.
            order: Order of the visits in a sweep; by default the policy's choice, ``"random"`` if ``init`` is given.
            progress: Show a progress bar.

        Returns:
            The best permutation found.

        Raises:
            StateDictError: A tensor is missing, extra or has another shape.
            NonFiniteError: A tensor holds NaN or infinity.
            ConfigurationError: An option has a value that cannot work.
        """
        begin = time.perf_counter()
        _check_options(self.spec, init, restarts, max_sweeps, order)
        self.spec.check_state(reference, "reference", finite=True)
        reference = {name: tensor.detach() for name, tensor in reference.items()}
        run = self._descent(reference)
        identity = Permutation.identity(self.spec)
        at_identity = objective(self.spec, reference, self._source)
        best, best_objective = identity, at_identity
        descents = []
        generator = torch.Generator().manual_seed(seed)
        plan = list(_plan(self.spec, init, restarts, order, generator))
        with tqdm(total=len(plan), desc="weight matching", unit="descent") if progress else nullcontext() as bar:
            for name, start, visits in plan:
                descent, permutation = self._descend(reference, run, name, start, visits, max_sweeps, generator)
                descents.append(descent)
                if descent.objective > best_objective:
                    best, best_objective = permutation, descent.objective
                if bar is not None:
                    bar.update()
                    bar.set_postfix(objective=f"{best_objective:.6g}", sweeps=descent.sweeps)
        return MatchResult(
            permutation=best,
            objective=best_objective,
            identity_objective=at_identity,
            descents=tuple(descents),
            similarity=similarities(self.spec, self._table.blocks, reference, self._source, best),
            identity_similarity=similarities(self.spec, self._table.blocks, reference, self._source, identity),
            norms=(_norm(reference, self._names), _norm(self._source, self._names)),
            seconds=time.perf_counter() - begin,
        )

    def _descent(self, reference: Mapping[str, Tensor]) -> CoordinateDescent:
        layouts = Layouts(reference, self._dtype, self._device)
        costs = CostCache(self._table, layouts, self._layouts, self._dtype, self._device)
        scales = dict.fromkeys((family.root.id for family in self._families), 0.0)
        for name in self._names:
            product = float(torch.linalg.vector_norm(reference[name].double())) * self._norms[name]
            for root in self._table.roots_of(name):
                scales[root] += product

        def local(family: Family, flats: Mapping[str, Tensor]) -> float:
            permutation = Permutation.from_flat(self.spec, flats)
            names = self._table.tensors_of(family.root.id)
            return objective(self.spec, reference, self._source, permutation, names)

        return CoordinateDescent(self._families, costs, scales, torch.finfo(self._dtype).eps, local)

    def _descend(
        self,
        reference: Mapping[str, Tensor],
        run: CoordinateDescent,
        name: str,
        start: Permutation,
        visits: Order,
        max_sweeps: int,
        generator: torch.Generator,
    ) -> tuple[Descent, Permutation]:
        begin = time.perf_counter()
        run.start({group: start.flat(group) for group in self.spec.groups})
        gains: list[float] = []
        for order in _orders(visits, len(self._families), max_sweeps, generator):
            gains.append(run.sweep(order))
            if not gains[-1]:
                break
        permutation = Permutation.from_flat(self.spec, run.flats)
        end = objective(self.spec, reference, self._source, permutation)
        objectives = [end]
        for gain in reversed(gains):
            objectives.append(objectives[-1] - gain)
        converged = bool(gains) and not gains[-1]
        return Descent(name, tuple(reversed(objectives)), converged, time.perf_counter() - begin), permutation


def _plan(
    spec: PermutationSpec,
    init: Start | Permutation | None,
    restarts: int | None,
    order: Order | None,
    generator: torch.Generator,
) -> Iterator[tuple[str, Permutation, Order]]:
    identity = Permutation.identity(spec)
    if isinstance(init, Permutation):
        for n in range(restarts or 1):
            yield f"given, order {n}", init, order or "random"
    elif init == "identity":
        for n in range(restarts or 1):
            yield f"identity, order {n}", identity, order or "random"
    elif init == "random":
        for n in range(restarts or 1):
            yield f"random {n}", Permutation.random(spec, generator), order or "random"
    else:
        total = restarts or 8
        fixed: list[tuple[str, Permutation, Order]] = [
            ("identity, forward", identity, order or "forward"),
            ("identity, alternating", identity, order or "alternating"),
        ]
        yield from fixed[:total]
        for n in range(total - len(fixed)):
            yield f"identity, random order {n}", identity, order or "random"


def _orders(order: Order, count: int, sweeps: int, generator: torch.Generator) -> Iterator[Sequence[int]]:
    forward = range(count)
    for sweep in range(sweeps):
        if order == "random":
            yield torch.randperm(count, generator=generator).tolist()
        elif order == "forward" or (order == "alternating" and sweep % 2 == 0):
            yield forward
        else:
            yield forward[::-1]


def _check_options(spec: PermutationSpec, init: Any, restarts: int | None, max_sweeps: int, order: str | None) -> None:
    if isinstance(init, Permutation):
        if init.spec is not spec and init.spec != spec:
            raise PermutationError("the initial permutation belongs to another spec")
    elif init not in (None, "identity", "random"):
        raise ConfigurationError(f"init must be None, 'identity', 'random' or a Permutation, not {init!r}")
    if restarts is not None and restarts < 1:
        raise ConfigurationError(f"restarts must be at least 1, not {restarts}")
    if max_sweeps < 1:
        raise ConfigurationError(f"max_sweeps must be at least 1, not {max_sweeps}")
    if order not in (None, "random", "forward", "backward", "alternating"):
        raise ConfigurationError(f"order must be 'random', 'forward', 'backward' or 'alternating', not {order!r}")


def _working_dtype(tensors: Iterator[Tensor]) -> torch.dtype:
    wide = any(t.dtype in (torch.float64, torch.complex128) for t in tensors)
    return torch.float64 if wide else torch.float32


def _norm(state: Mapping[str, Tensor], names: Sequence[str]) -> float:
    return float(sum(float(torch.linalg.vector_norm(state[name].double())) ** 2 for name in names)) ** 0.5
