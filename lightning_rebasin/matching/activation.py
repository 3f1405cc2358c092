"""Activation matching: units that respond alike are the same unit.

Both networks see the same data.  For every group the statistic ``S[i, j]`` says how alike unit ``i`` of the reference
and unit ``j`` of the source respond, and the permutation maximises ``Σ_i S[i, p[i]]``, one assignment problem per
group; a nested group (dimensions inside heads) is solved for every pair of parents first, and the parents are matched
by what their members can reach.  Two statistics are in use:

* the *inner product* ``E[a_i b_j]`` of the paper's MLP scripts, and
* Pearson's *correlation* ``cov(a_i, b_j) / (σ_i σ_j)`` of its VGG script, with 0 for dead units.

Where the units can be seen comes from the spec: no hooks are written by hand.  The data are read once; only sums are
kept, in float64, so the memory does not grow with the number of batches.

Source: Ainsworth, Hayase, Srinivasa, "Git Re-Basin", ICLR 2023, section 3.1 (arXiv 2209.04836).
"""

from __future__ import annotations

import copy
import inspect
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal, final, get_args

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from tqdm import tqdm

from lightning_rebasin.assignment.solve import Solver, checked_solver
from lightning_rebasin.errors import (
    ConfigurationError,
    DataError,
    NonFiniteError,
)
from lightning_rebasin.matching.result import MatchResult
from lightning_rebasin.matching.search.general import complete
from lightning_rebasin.matching.steps.nested import best_elements
from lightning_rebasin.matching.steps.permutation import (
    families_of,
    solve_nested,
)
from lightning_rebasin.symmetry.actions.action import action_of
from lightning_rebasin.symmetry.actions.balance import (
    back_from_balance,
    balancing,
)
from lightning_rebasin.symmetry.actions.permutation import Permutation
from lightning_rebasin.symmetry.actions.transform import Transform
from lightning_rebasin.symmetry.observe import record_activations
from lightning_rebasin.symmetry.spec.gauge import fold
from lightning_rebasin.symmetry.spec.spec import PermutationSpec
from lightning_rebasin.symmetry.spec.values import ActivationAddress

Statistic = Literal["inner_product", "correlation"]
#: The statistic of each way to match that looks at activations, by the name that users give the way.
STATISTICS: dict[str, Statistic] = {
    "activation": "inner_product",
    "correlation": "correlation",
}

#: Variance, relative to the squared mean, below which a unit counts as dead: what float64 sums leave of a constant.
_DEAD = 1e-12


@final
class CrossMoments:
    """Sums over samples from which inner products and correlations between two sets of units follow.

    Example:
        >>> moments = CrossMoments()
        >>> moments.update(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[2.0, 4.0, 6.0], [0.0, 0.0, 0.0]]))
        >>> [[round(value, 3) for value in row] for row in moments.correlation().tolist()]
        [[1.0, 0.0]]
        >>> [[round(value, 3) for value in row] for row in moments.inner_product().tolist()]
        [[9.333, 0.0]]
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def update(self, a: Tensor, b: Tensor) -> None:
        """Add samples.

        Args:
            a: Units of the reference by samples, ``(n, N)``, any floating dtype.
            b: Units of the source by the same samples, ``(m, N)``.
        """
        a, b = a.detach().double(), b.detach().double()
        new = {
            "count": torch.full(
                (), a.shape[1], dtype=torch.float64, device=a.device
            ),
            "a": a.sum(1),
            "b": b.sum(1),
            "aa": a.square().sum(1),
            "bb": b.square().sum(1),
            "ab": a @ b.T,
        }
        self._sums = {
            name: self._sums[name] + value if self._sums else value
            for name, value in new.items()
        }

    def reduce(self, total: Callable[[Tensor], Tensor]) -> None:
        """Replace every sum by its total over processes."""
        self._sums = {name: total(value) for name, value in self._sums.items()}

    def inner_product(self) -> Tensor:
        """``E[a_i b_j]``, float64 ``(n, m)`` on the CPU."""
        return (self._sums["ab"] / self._sums["count"]).cpu()

    def correlation(self) -> Tensor:
        """Pearson's correlation of ``a_i`` and ``b_j``, float64 ``(n, m)`` on the CPU; 0 where a unit never changes."""
        count = self._sums["count"]
        mean_a, mean_b = self._sums["a"] / count, self._sums["b"] / count
        covariance = self._sums["ab"] / count - torch.outer(mean_a, mean_b)
        scale_a = _inverse_deviation(self._sums["aa"] / count, mean_a)
        scale_b = _inverse_deviation(self._sums["bb"] / count, mean_b)
        return (covariance * torch.outer(scale_a, scale_b)).cpu()


def _inverse_deviation(square: Tensor, mean: Tensor) -> Tensor:
    """``1/σ``, and 0 for a dead unit."""
    variance = square - mean.square()
    alive = variance > _DEAD * square
    return torch.where(
        alive, variance.clamp_min(torch.finfo(torch.float64).tiny).rsqrt(), 0.0
    )


def best_permutation(
    spec: PermutationSpec,
    scores: Mapping[str, Tensor],
    solver: Solver = "auto",
) -> Permutation:
    """The permutation with the highest total score; units stay where that is as good, as dead ones do.

    Args:
        spec: The groups.
        scores: For each group a float64 matrix ``(members, members)``, reference units by source units; groups left out
            score nothing and keep their order where nothing else decides.
        solver: Assignment solver.

    Example:
        >>> spec = PermutationSpec.from_table({"w": ("h",)}, {"w": (2,)})
        >>> scores = {"h": torch.tensor([[0.0, 5.0], [1.0, 0.0]], dtype=torch.float64)}
        >>> best_permutation(spec, scores)["h"].tolist()
        [1, 0]
    """
    matrices = {group: score.numpy() for group, score in scores.items()}
    flats: dict[str, Tensor] = {}
    for family in families_of(spec):
        solved = solve_nested(family, matrices, solver, stay=True)
        flats.update(
            {group: torch.from_numpy(order) for group, order in solved.items()}
        )
    return Permutation.from_flat(spec, flats)


def match_activations(
    spec: PermutationSpec,
    reference_module: nn.Module,
    source_module: nn.Module,
    batches: Iterable[Any],
    *,
    statistic: Statistic = "inner_product",
    total: Callable[[Tensor], Tensor] | None = None,
    solver: str = "auto",
    progress: bool = False,
) -> MatchResult:
    """Find the permutation of the source whose units respond most like the reference's.

    Maximises ``Σ_groups Σ_i S[i, p[i]]`` exactly; a group seen at several places sums their statistics.  What is
    seen nowhere (a flip inside a tree does not change what the tree says) is chosen by weights, with all else as it is.

    Args:
        spec: What may be permuted, made by :func:`~lightning_rebasin.infer_spec` (it knows where units can be seen).
        reference_module: Network A; run in eval mode and left as it was.
        source_module: Network B, the same architecture.
        batches: Any number of batches, read once: a tensor, a sequence whose first item is the input, or a dict of
            which the arguments of ``forward`` are taken.
        statistic: ``"inner_product"`` is ``E[a b]``, ``"correlation"`` is Pearson's, with 0 for units that never
            change.
        total: Sums a tensor over processes, if each of them has its own batches.
        solver: Assignment solver, see :func:`~lightning_rebasin.assignment.solve_assignment`.
        progress: Show a progress bar over the batches.

    Returns:
        The permutation; objective and similarity are those of the statistic, in float64.

    Raises:
        ConfigurationError: The statistic is unknown, or the spec does not say where units can be seen.
        DataError: There is no batch, or the inputs in it cannot be told.
        NonFiniteError: A unit is NaN or infinite.

    Example:
        >>> from lightning_rebasin import infer_spec
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> spec = infer_spec(net, torch.ones(1, 2))
        >>> data = [torch.randn(50, 2, generator=torch.Generator().manual_seed(0))]
        >>> match_activations(spec, net, net, data, statistic="correlation").permutation.is_identity
        True

    References:
        Ainsworth, Hayase, Srinivasa, "Git Re-Basin", ICLR 2023, section 3.1 (arXiv 2209.04836).
    """
    found = match_by_statistics(
        spec,
        reference_module,
        source_module,
        batches,
        (statistic,),
        total=total,
        solver=solver,
        progress=progress,
    )
    return found[statistic]


def match_by_statistics(
    spec: PermutationSpec,
    reference_module: nn.Module,
    source_module: nn.Module,
    batches: Iterable[Any],
    statistics: Sequence[Statistic],
    *,
    total: Callable[[Tensor], Tensor] | None = None,
    solver: str = "auto",
    progress: bool = False,
) -> dict[Statistic, MatchResult]:
    """:func:`match_activations` for several statistics: the networks run once for all of them.

    Args:
        spec: As there, like everything that is not listed here.
        reference_module: Network A.
        source_module: Network B.
        batches: Batches, read once.
        statistics: The statistics.
        total: Sums a tensor over processes.
        solver: Assignment solver.
        progress: Show a progress bar over the batches.

    Returns:
        The result for each statistic; the seconds of the common run are in all of them.
    """
    begin = time.perf_counter()
    for statistic in statistics:
        if statistic not in get_args(Statistic):
            raise ConfigurationError(
                f"statistic={statistic!r} is unknown; choose one of {get_args(Statistic)}"
            )
    spec = spec.pin_identical_buffers(
        reference_module.state_dict(), source_module.state_dict()
    )
    if spec.groups and not any(spec.activations.values()):
        raise ConfigurationError(
            "this spec does not say where units can be seen: make it with infer_spec(module, ...)"
        )
    canonical = home = Transform.identity(spec)
    if not _only_permutations(spec):
        # Units may only be compared in one gauge: private copies get balanced weights.
        source, reference = _state(source_module), _state(reference_module)
        canonical = balancing(spec, fold(spec, source))
        home = back_from_balance(spec, fold(spec, reference))
        own = balancing(spec, fold(spec, reference))
        source_module = _with_weights(source_module, canonical.apply(source))
        reference_module = _with_weights(
            reference_module, own.apply(reference)
        )
    moments = _collect(
        spec,
        reference_module,
        source_module,
        tqdm(batches, "activations", disable=not progress),
    )
    for site in moments.values():
        if total is not None:
            site.reduce(total)
    mixed = not _only_permutations(spec)
    weights = _state(reference_module), _state(source_module)
    found = {}
    for statistic in statistics:
        scores = _scores(spec, moments, statistic)
        chosen = checked_solver(solver)
        if mixed:
            result = _best_transform(spec, scores, weights, chosen)
            moved = home.compose(result.transform).compose(canonical)
            result = replace(result, transform=moved)
        else:
            result = _match(spec, moments, scores, chosen)
        found[statistic] = replace(
            result,
            seconds=time.perf_counter() - begin,
            method=f"activations, {statistic.replace('_', ' ')}",
        )
    return found


def _match(
    spec: PermutationSpec,
    moments: Mapping[ActivationAddress, CrossMoments],
    scores: Mapping[str, Tensor],
    solver: Solver,
) -> MatchResult:
    """The best permutation for one statistic of what was seen."""
    permutation = best_permutation(spec, scores, solver)
    ends = Permutation.identity(spec), permutation
    before, after = (
        {g: _pairs(score, p.flat(g)) for g, score in scores.items()}
        for p in ends
    )
    return MatchResult(
        transform=permutation,
        objective=sum(float(pairs.sum()) for pairs in after.values()),
        identity_objective=sum(
            float(pairs.sum()) for pairs in before.values()
        ),
        similarity=_mean_correlations(spec, moments, permutation),
        identity_similarity=_mean_correlations(spec, moments, ends[0]),
    )


def _only_permutations(spec: PermutationSpec) -> bool:
    return all(g.kind == "permutation" for g in spec.groups.values())


def _state(module: nn.Module) -> dict[str, Tensor]:
    state = module.state_dict()
    return {n: t for n, t in state.items() if isinstance(t, Tensor)}


def _with_weights(module: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """A copy of a module with other weights."""
    copied = copy.deepcopy(module)
    with torch.no_grad():
        for name, tensor in _state(copied).items():
            tensor.copy_(state[name])
    return copied


def _best_transform(
    spec: PermutationSpec,
    scores: Mapping[str, Tensor],
    weights: tuple[Mapping[str, Tensor], Mapping[str, Tensor]],
    solver: Solver,
) -> MatchResult:
    """The elements with the highest total score, family by family, between balanced networks.

    Units with a sign or a scale of their own are seen where their permutation is: their pairs are its pairs.  Groups
    that are seen nowhere are chosen by weights, with all others as they are.
    """
    unseen = {name for name, seen in spec.activations.items() if not seen}
    costs = dict(scores)
    for group in spec.groups.values():
        outer = group.parent
        if group.id in unseen:
            continue
        if group.size == 1 and outer is not None and outer.id in scores:
            costs[group.id] = scores[outer.id]
            costs.pop(outer.id, None)
    elements: dict[str, Tensor] = {}
    for family in families_of(spec):
        elements |= best_elements(family.groups, costs, solver)
    best = Transform.of(spec, elements)
    if unseen:
        decided = {n: e for n, e in elements.items() if n not in unseen}
        best = complete(spec, *weights, decided, solver)
    identity = Transform.identity(spec)
    return MatchResult(
        transform=best,
        objective=_score_of(spec, costs, best),
        identity_objective=_score_of(spec, costs, identity),
    )


def _score_of(
    spec: PermutationSpec, costs: Mapping[str, Tensor], transform: Transform
) -> float:
    """``Σ ⟨units of A, transformed units of B⟩`` of all groups, from their products."""
    total = 0.0
    for name, cost in costs.items():
        group = spec.groups[name]
        rows = cost[:, transform.flat(name)]
        if action_of(group).rearranges:
            total += float(rows.diagonal().sum())
            continue
        shape = (group.instances, group.size, group.instances, group.size)
        number = torch.arange(group.instances)
        # What each unit of an instance has in common with each unit that moved there.
        blocks = rows.reshape(shape)[number, :, number].mT
        moved = action_of(group).apply(
            group, transform.elements[name], blocks.contiguous(), 1
        )
        total += float(moved.diagonal(dim1=-2, dim2=-1).sum())
    return total


def model_inputs(
    model: nn.Module, batch: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of ``model.forward`` in a batch: a tensor, the first item of a sequence, or keys of a dict.

    Args:
        model: The network.
        batch: What a data loader gave.

    Returns:
        Positional and keyword arguments.

    Raises:
        DataError: The batch has none of these forms.
    """
    if isinstance(batch, Tensor):
        return (batch,), {}
    if isinstance(batch, Mapping):
        accepted = inspect.signature(model.forward).parameters
        named = {
            name: value for name, value in batch.items() if name in accepted
        }
        if named:
            return (), named
    elif (
        isinstance(batch, Sequence) and batch and isinstance(batch[0], Tensor)
    ):
        return (batch[0],), {}
    raise DataError(
        f"cannot tell the inputs of {type(model).__name__} in a batch of type {type(batch).__name__}: give tensors, "
        "sequences that begin with the input, or dicts with the names of forward's arguments"
    )


def _collect(
    spec: PermutationSpec,
    reference: nn.Module,
    source: nn.Module,
    batches: Iterable[Any],
) -> dict[ActivationAddress, CrossMoments]:
    moments = {
        site: CrossMoments()
        for sites in spec.activations.values()
        for site in sites
    }
    empty = True
    with _evaluating(reference, source), torch.no_grad():
        for batch in batches:
            empty = False
            theirs = _observe(spec, source, batch)
            for site, units in _observe(spec, reference, batch).items():
                moments[site].update(units, theirs.pop(site))
    if empty:
        raise DataError("no batches given to compare activations on")
    return moments


def _observe(
    spec: PermutationSpec, module: nn.Module, batch: Any
) -> dict[ActivationAddress, Tensor]:
    """Run one batch; every site's units as ``(members, copies · samples)``."""
    like = next(module.parameters(), torch.empty(0))

    def place(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.to(
            like.device, like.dtype if value.is_floating_point() else None
        )

    seen: dict[ActivationAddress, Tensor] = {}

    def keep(site: ActivationAddress, tensor: Tensor) -> None:
        seen[site] = site.units(tensor).flatten(
            1
        )  # index_select has copied it

    args, kwargs = tree_map(place, model_inputs(module, batch))
    with record_activations(spec, keep):
        module(*args, **kwargs)
    return seen


@contextmanager
def _evaluating(*modules: nn.Module) -> Iterator[None]:
    """Eval mode inside, every submodule's own mode afterwards."""
    modes = [
        (child, child.training)
        for module in modules
        for child in module.modules()
    ]
    for child, _ in modes:
        child.training = False
    try:
        yield
    finally:
        for child, training in modes:
            child.training = training


def _scores(
    spec: PermutationSpec,
    moments: Mapping[ActivationAddress, CrossMoments],
    statistic: Statistic,
) -> dict[str, Tensor]:
    scores = {}
    for group, sites in spec.activations.items():
        if not sites:
            continue
        found = [getattr(moments[site], statistic)() for site in sites]
        scores[group] = (
            torch.stack(found).sum(0) if len(found) > 1 else found[0]
        )
        if not bool(torch.isfinite(scores[group]).all()):
            raise NonFiniteError(
                f"group {group!r}: a unit's activations are NaN or infinite on the given batches"
            )
    return scores


def _pairs(score: Tensor, flat: Tensor) -> Tensor:
    return score[torch.arange(len(flat)), flat]


def _mean_correlations(
    spec: PermutationSpec,
    moments: Mapping[ActivationAddress, CrossMoments],
    permutation: Permutation,
) -> dict[str, float]:
    """Mean correlation of matched units by group, over all places where they are seen."""
    found = {}
    for group, sites in spec.activations.items():
        pairs = [
            _pairs(moments[site].correlation(), permutation.flat(group))
            for site in sites
        ]
        found[group] = float(torch.cat(pairs).mean())
    return found
