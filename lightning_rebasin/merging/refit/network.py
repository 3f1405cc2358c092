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
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from lightning_rebasin.errors import ConfigurationError
from lightning_rebasin.merging.processes import Total, alone
from lightning_rebasin.merging.refit.batches import batch_size
from lightning_rebasin.merging.refit.choose import Loss, best
from lightning_rebasin.merging.refit.contest import Contest
from lightning_rebasin.merging.refit.fitted import FittedLayer, Plan
from lightning_rebasin.merging.refit.fitting import Fitter
from lightning_rebasin.merging.refit.places import operation_names
from lightning_rebasin.merging.refit.plan import make_plan
from lightning_rebasin.merging.refit.report import (
    LayerFit,
    Method,
    Refit,
)
from lightning_rebasin.merging.refit.squares import RIDGES, Solution
from lightning_rebasin.merging.statistics import Module, moved_to
from lightning_rebasin.symmetry.run.examples import Example
from lightning_rebasin.symmetry.trace.record import record


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
    contest = Contest(
        module, states, batches, shares=shares, loss=loss, total=total
    )
    return refit_in(contest, ridge=ridge, progress=progress)


def refit_in(
    contest: Contest[Module],
    *,
    ridge: float | None = None,
    progress: bool = False,
) -> Refit[Module]:
    """:func:`refit` in a contest of which the rivals may have been scored already.

    Args:
        contest: The ends, the data, and what a refit has to beat.
        ridge: As for :func:`refit`.
        progress: As for :func:`refit`.
    """
    ridges = _ridges(ridge)
    merged = copy.deepcopy(contest.naive)
    plan, plain = _plan(merged, contest.everything.example())
    fitter = Fitter(
        merged,
        contest.ends,
        contest.fitted_part,
        plain=plain,
        ridges=ridges,
        total=contest.total,
    )
    with torch.no_grad():
        fits = _fit(fitter, plan, progress=progress)
    scores = contest.scores_with(merged)
    method: Method = best(scores)
    return Refit(
        merged if method == "refit" else contest.made(method),
        method,
        scores,
        contest.criterion,
        tuple(fits),
        plan.left,
        contest.samples(),
    )


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
