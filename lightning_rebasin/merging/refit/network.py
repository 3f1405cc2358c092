"""Refit: the weights of a merged network by least squares, layer by layer.

Correcting means and spreads is not enough where networks are narrow.  A refit goes through the layers in the order in
which they run.  For each one, with everything before it already final,

1. its inputs ``X`` are those of the *merged* network, so that earlier errors are seen;
2. its target ``Y`` is the mean of what the aligned ends return where the layer's output becomes visible: behind a
   batch norm, in front of the nonlinearity, after the addition to a residual stream (less what the merged network's
   own stream holds already);
3. its weights solve ``min ‖Y − [X 1]·W‖² + ρ·‖W − W₀‖²`` in closed form, drawn to the rescaled average ``W₀``.

Data are needed, labels are not.  The result is one good network of the same architecture, not a flat path between the
ends: linear mode connectivity still comes from symmetries alone.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Generic

import torch
from torch import Tensor, nn
from tqdm import tqdm

from lightning_rebasin.errors import ConfigurationError
from lightning_rebasin.merging.interpolate import (
    average,
    check_alike,
    normalised_weights,
)
from lightning_rebasin.merging.processes import (
    Total,
    alone,
    device_of,
    total_number,
)
from lightning_rebasin.merging.refit.batches import Batches, batch_size
from lightning_rebasin.merging.refit.choose import (
    Loss,
    best,
    distances,
    losses,
)
from lightning_rebasin.merging.refit.fitted import FittedLayer, Plan
from lightning_rebasin.merging.refit.fitting import Ends, Fitter
from lightning_rebasin.merging.refit.places import operation_names
from lightning_rebasin.merging.refit.plan import make_plan
from lightning_rebasin.merging.refit.report import (
    Criterion,
    LayerFit,
    Method,
    Refit,
)
from lightning_rebasin.merging.refit.squares import RIDGES, Solution
from lightning_rebasin.merging.repair import repair
from lightning_rebasin.merging.statistics import (
    Module,
    batch_norms,
    copied,
    moved_to,
    reset_batch_norm,
)
from lightning_rebasin.symmetry.run.examples import Example
from lightning_rebasin.symmetry.trace.record import record

#: Samples that REPAIR gets while it is only a candidate.
_REPAIR_SAMPLES = 512


def refit(
    module: Module,
    states: Sequence[Mapping[str, Tensor]],
    batches: Iterable[Any],
    *,
    shares: Sequence[float] | None = None,
    ridge: float | None = None,
    loss: Loss | None = None,
    total: Total = alone,
    progress: bool = False,
) -> Refit[Module]:
    """Merge aligned networks by solving the merged network's layers.

    Args:
        module: The architecture; its own weights do not matter, and it is left as it was.
        states: Aligned weights of the ends: ``[a, permutation.apply(b)]``; any number.
        batches: Inputs without labels, as for :func:`~lightning_rebasin.repair`; gone through once per layer, every
            time in the same order.  An eighth of the samples is held out to compare the results.
        shares: Share of each end; equal if omitted.
        ridge: Strength of the pull towards the rescaled average.  Chosen for each layer on held-out rows if omitted.
        loss: Given a network and a batch, the mean loss; judges instead of the distance to the ends' mean outputs.
        total: Sums a tensor over processes, if each of them has its own batches (at least one):
            ``lambda tensor: trainer.strategy.reduce(tensor, reduce_op="sum")``.  All of them get the network that one
            process would get on all batches, but for rounding; which samples judge a layer is decided by their number
            in each process, so that this holds where each has a multiple of 8 to fit.
        progress: Show a progress bar over the layers.

    Returns:
        The best, by held-out score, of the naive average, the average with its batch norms reset, REPAIR and the
        refit, with a report.

    Raises:
        StateDictError: The states do not fit the module or each other.
        ConfigurationError: The shares or the ridge cannot work.
        DataError: There is no batch, or the batches change from pass to pass.
        TraceError: The module does not run on the batches, or takes another path on one of them.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
        >>> a = {k: torch.full_like(v, 1.0) for k, v in net.state_dict().items()}
        >>> b = {k: -v if k.startswith("0") else v for k, v in a.items()}
        >>> x = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
        >>> result = refit(net, [a, b], [x])
        >>> result.method, [fit.layer for fit in result.layers]
        ('refit', ['0.weight', '1.weight'])

    References:
        Nasery et al., "PLeaS: Merging Models with Permutations and Least Squares", CVPR 2025 (arXiv 2407.02447), for
        least squares per layer; Jin et al., "RegMean", ICLR 2023 (arXiv 2212.09849), for its closed form.
    """
    ridges = _ridges(ridge)
    contest = _Contest(
        module, states, batches, shares=shares, loss=loss, total=total
    )
    merged = copy.deepcopy(contest.naive)
    plan, plain = _plan(merged, contest.everything.example())
    fitter = Fitter(
        merged,
        contest.ends,
        contest.fitted_part,
        plain=plain,
        ridges=ridges,
        total=total,
    )
    with torch.no_grad():
        fits = _fit(fitter, plan, progress=progress)
    candidates = contest.rivals()
    candidates["refit"] = merged
    scores = contest.scores(candidates)
    method: Method = best(scores)
    return Refit(
        contest.made(method, candidates),
        method,
        scores,
        contest.criterion,
        tuple(fits),
        plan.left,
        contest.samples(),
    )


def score_rivals(
    module: nn.Module,
    states: Sequence[Mapping[str, Tensor]],
    batches: Iterable[Any],
    *,
    shares: Sequence[float] | None = None,
    loss: Loss | None = None,
) -> dict[Method, float]:
    """Held-out scores of what a refit has to beat: the naive average, reset and REPAIR; as :func:`refit` has them.

    They take a small part of the time of a refit, and say which of several alignments deserves one.

    Args:
        module: The architecture.
        states: Aligned weights of the ends.
        batches: As for :func:`refit`.
        shares: Share of each end; equal if omitted.
        loss: As for :func:`refit`.

    Returns:
        Score by method, lower is better.
    """
    contest = _Contest(module, states, batches, shares=shares, loss=loss)
    return contest.scores(contest.rivals())


class _Contest(Generic[Module]):
    """Ways to merge the same aligned ends, judged on the same held-out samples."""

    def __init__(
        self,
        module: Module,
        states: Sequence[Mapping[str, Tensor]],
        batches: Iterable[Any],
        *,
        shares: Sequence[float] | None,
        loss: Loss | None,
        total: Total = alone,
    ) -> None:
        self._loss = loss
        self._total = total
        self._states = states
        self._shares = normalised_weights(len(states), shares)
        self.naive = copied(module)
        own = self.naive.state_dict()
        names = [f"model {i + 1}" for i in range(len(states))]
        check_alike((own, *states), ("the module", *names))
        self.everything = Batches(batches)
        self.fitted_part = self.everything.part("fit")
        self.held_out = self.everything.part("held out")
        parts = (self.fitted_part, self.held_out)
        lacking = any(not part.samples for part in parts)
        if total_number(total, lacking, device_of(self.naive)):
            # Too few to judge, in one process at least: what was fitted has to judge itself.
            self.fitted_part = self.held_out = self.everything
        self.ends = Ends(copy.deepcopy(self.naive), states, self._shares)
        self.naive.load_state_dict(average(states, self._shares))

    @property
    def criterion(self) -> Criterion:
        """What the scores are."""
        return "distance" if self._loss is None else "loss"

    def samples(self) -> tuple[int, int]:
        """How many samples are fitted, and how many are held out."""
        device = device_of(self.naive)
        fitted, held_out = (
            round(total_number(self._total, part.samples, device))
            for part in (self.fitted_part, self.held_out)
        )
        return fitted, held_out

    def rivals(self) -> dict[Method, Module]:
        """What a refit has to beat: the average as it is, reset, and repaired."""
        found: dict[Method, Module] = {"naive": self.naive}
        if batch_norms(self.naive):
            found["reset"] = reset_batch_norm(
                self.naive, self.fitted_part, total=self._total
            )
        few = self.fitted_part.first(_REPAIR_SAMPLES)
        found["repair"] = self._repaired(few)
        return found

    def scores(
        self, candidates: Mapping[Method, Module]
    ) -> dict[Method, float]:
        """Score of each candidate on the held-out samples."""
        if self._loss is None:
            return distances(
                candidates, self.held_out, self.ends, total=self._total
            )
        return losses(candidates, self.held_out, self._loss, total=self._total)

    def made(
        self, method: Method, candidates: Mapping[Method, Module]
    ) -> Module:
        """The winner; REPAIR, which competed on few samples, is done once more on all."""
        if method == "repair":
            return self._repaired(self.fitted_part)
        return candidates[method]

    def _repaired(self, batches: Iterable[Any]) -> Module:
        return repair(
            self.naive,
            self._states,
            batches,
            weights=self._shares,
            total=self._total,
        ).module


def _ridges(ridge: float | None) -> Sequence[float]:
    if ridge is None:
        return RIDGES
    if not ridge >= 0:
        raise ConfigurationError(
            f"ridge must be a number that is not negative, got {ridge}"
        )
    return (float(ridge),)


def _plan(module: nn.Module, batch: Any) -> tuple[Plan, bool]:
    """The layers, and whether fused kernels must be off for the operations to be those of the tape."""
    if isinstance(batch, Mapping):
        example = Example((), dict(batch))
    else:
        first = batch[0] if isinstance(batch, tuple | list) else batch
        example = Example((first,))
    example = _moved(module, example)
    plan = make_plan(module, record(module, example), batch_size(batch))
    as_taped = operation_names(module, batch, plain=True)
    return plan, operation_names(module, batch, plain=False) != as_taped


def _moved(module: nn.Module, example: Example) -> Example:
    from_module = [moved_to(module, value) for value in example.args]
    named = {
        name: moved_to(module, value) for name, value in example.kwargs.items()
    }
    return Example(tuple(from_module), named)


def _fit(fitter: Fitter, plan: Plan, *, progress: bool) -> list[LayerFit]:
    fits = []
    with tqdm(
        total=len(plan.fitted), desc="refit", disable=not progress
    ) as bar:
        for layer, solution, rows in fitter.fit_all(plan.fitted):
            # Those are named among the left ones.
            if not layer.only_corrected:
                fits.append(_report(layer, solution, rows))
            bar.update()
    return fits


def _report(layer: FittedLayer, solution: Solution, rows: int) -> LayerFit:
    unknowns = layer.weight.index.shape[1] + layer.intercept
    absorbed = layer.norm.mean.name if layer.norm is not None else ""
    return LayerFit(
        layer.name,
        solution.before,
        solution.after,
        solution.ridge,
        rows / unknowns,
        layer.joins,
        absorbed.rpartition(".")[0],
    )
