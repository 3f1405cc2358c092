"""Choosing by measurement: which alignment, and which correction behind it, gives the best merged network.

Matching by weights starts far behind matching by activations on narrow networks, and ahead of it on others; REPAIR may
do harm, and networks of one basin need no matching at all.  So with data at hand nothing is assumed.  Every alignment
is scored with the corrections that cost little (none, reset, REPAIR) on samples that nothing was fitted to; the two
best alignments are also refitted; the best pair of alignment and correction wins.

Without labels the score is the distance of the merged network's outputs to the mean of the ends' outputs, which does
not depend on the alignment; with a loss it is the loss.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, SequentialSampler

from lightning_rebasin.checkpoints.align import (
    Aligned,
    Method,
    align,
    align_by_activations,
    load,
)
from lightning_rebasin.checkpoints.average import permuted
from lightning_rebasin.checkpoints.options import MergeOptions
from lightning_rebasin.checkpoints.report import Trial
from lightning_rebasin.matching.activation import STATISTICS
from lightning_rebasin.merging.refit import Contest, Refit, refit_in
from lightning_rebasin.merging.refit.choose import Loss
from lightning_rebasin.merging.refit.report import Method as Correction
from lightning_rebasin.merging.statistics import outputs
from lightning_rebasin.symmetry import PermutationSpec

#: What ``method="auto"`` tries; the first of equals wins.
ALIGNMENTS: tuple[Method, ...] = (
    "average",
    "weight",
    "activation",
    "correlation",
)
#: So many alignments are refitted, which takes longer than all the rest.
_REFITTED = 2


@dataclass(frozen=True, eq=False)
class Choice:
    """The best way to merge, and what else was tried.

    Args:
        aligned: The models in one frame.
        method: How they were brought there.
        correction: ``"naive"``, ``"reset"``, ``"repair"`` or ``"refit"``.
        refit: The refit of this alignment, if there was one.
        trials: Everything that was tried.
        criterion: What the scores are: ``"distance"`` or ``"loss"``.
    """

    aligned: Aligned
    method: Method
    correction: Correction
    refit: Refit[nn.Module] | None
    trials: tuple[Trial, ...]
    criterion: str


def choose(
    network: nn.Module,
    spec: PermutationSpec | None,
    states: Sequence[Mapping[str, Tensor]],
    data: Iterable[Any],
    *,
    options: MergeOptions,
    shares: Sequence[float],
    loss: Loss | None = None,
) -> Choice:
    """Try alignments and corrections as far as the options leave them open.

    Args:
        network: A private copy of the network; its weights are overwritten.
        spec: What may be permuted; ``None`` if nothing is to be.
        states: The models' weights, the reference first.
        data: Batches; held in memory if going through them again would give others.
        options: What is forced and what is open.
        shares: Share of each model.
        loss: Mean loss of a network on a batch, if there are labels.

    Returns:
        The best combination.

    Raises:
        ConfigurationError: Activation matching was asked for, but the spec does not say where units can be seen.
    """
    batches = repeatable(data)
    tried = _alignments(
        network, spec, states, batches, options=options, shares=shares
    )
    allowed = _corrections(options)
    scores: dict[Method, dict[Correction, float]] = {}
    contests: dict[Method, Contest[nn.Module]] = {}
    for method, aligned in tried.items():
        load(network, states[0])
        contests[method] = Contest(
            network, _ends(states, aligned), batches, shares=shares, loss=loss
        )
        scores[method] = contests[method].rival_scores()
        # The others give their copies of the networks back.
        contests = {m: contests[m] for m in _ranked(scores) if m in contests}
    fits: dict[Method, Refit[nn.Module]] = {}
    if "refit" in allowed:
        for method, contest in contests.items():
            fits[method] = refit_in(contest, progress=options.progress)
            scores[method] = dict(fits[method].scores)
    method, correction = _winner(scores, allowed)
    return Choice(
        tried[method],
        method,
        correction,
        fits.get(method),
        tuple(_trials(scores)),
        "distance" if loss is None else "loss",
    )


def repeatable(data: Iterable[Any]) -> Iterable[Any]:
    """Batches that are the same in every pass: a loader that shuffles, or an iterator, is read once and kept."""
    if isinstance(data, Sequence):
        return data
    if isinstance(data, DataLoader):
        in_order = isinstance(data.sampler, SequentialSampler)
        return data if in_order else list(data)
    return list(data)


def runs_on(network: nn.Module, batches: Iterable[Any]) -> bool:
    """Whether ``forward`` takes the batches as they are; some networks run through ``validation_step`` only."""
    first = next(iter(batches), None)
    try:
        with torch.no_grad():
            next(iter(outputs(network, [first])))
    except Exception:  # noqa: BLE001 - the user's forward may raise anything
        return False
    return True


def _alignments(
    network: nn.Module,
    spec: PermutationSpec | None,
    states: Sequence[Mapping[str, Tensor]],
    batches: Iterable[Any],
    *,
    options: MergeOptions,
    shares: Sequence[float],
) -> dict[Method, Aligned]:
    """What is to be compared, each result once."""
    open_choice = options.method == "auto"
    methods = list(ALIGNMENTS) if open_choice else [options.method]
    if spec is None:
        return {methods[0]: Aligned((None,) * len(states))}
    seen = [method for method in methods if method in STATISTICS]
    if open_choice and not spec.activations:
        # A spec that was written by hand: units cannot be seen.
        methods = [method for method in methods if method not in seen]
        seen = []
    by_activations = {}
    if seen:
        by_activations = align_by_activations(
            spec, states, seen, network=network, data=batches
        )
    found: dict[Method, Aligned] = {}
    for method in methods:
        aligned = by_activations.get(method) or align(
            spec,
            states,
            method,
            options.many,
            shares,
            network=network,
            data=batches,
            seed=options.seed,
            progress=options.progress,
        )
        if not any(_same(aligned, other) for other in found.values()):
            found[method] = aligned
    return found


def _same(a: Aligned, b: Aligned) -> bool:
    """Whether two alignments move every model alike; moving nothing is the same as the identity."""
    for p, q in zip(a.permutations, b.permutations, strict=True):
        moving = [x for x in (p, q) if x is not None and not x.is_identity]
        if moving and p != q:
            return False
    return True


def _corrections(options: MergeOptions) -> tuple[Correction, ...]:
    """Which corrections may win."""
    every: tuple[Correction, ...] = get_args(Correction)
    if options.statistics in ("auto", "refit"):
        # A refit that measures worse than what is simpler gives way to it.
        return every
    if options.statistics == "none":
        return ("naive",)
    return tuple(c for c in every if c == options.statistics)


def _ends(
    states: Sequence[Mapping[str, Tensor]], aligned: Aligned
) -> list[dict[str, Tensor]]:
    """The models in one frame, in memory."""
    found = []
    for state, permutation in zip(states, aligned.permutations, strict=True):
        found.append({n: permuted(state, n, permutation) for n in state})
    return found


def _trials(
    scores: Mapping[Method, Mapping[Correction, float]],
) -> Iterator[Trial]:
    """The scores as the report has them."""
    for method, row in scores.items():
        plain = {str(name): score for name, score in row.items()}
        yield Trial(method, plain)


def _ranked(
    scores: Mapping[Method, Mapping[Correction, float]],
) -> list[Method]:
    """The alignments that deserve a refit, the best first.

    What repairs best is refitted best, in every pair of networks looked at.
    """
    return sorted(scores, key=lambda m: _lowest(scores[m]))[:_REFITTED]


def _lowest(scores: Mapping[Correction, float]) -> float:
    finite = [score for score in scores.values() if math.isfinite(score)]
    return min(finite, default=math.inf)


def _winner(
    scores: Mapping[Method, Mapping[Correction, float]],
    allowed: Sequence[Correction],
) -> tuple[Method, Correction]:
    """The pair with the lowest score, the first of equals."""
    best: tuple[float, Method, Correction] | None = None
    for method, row in scores.items():
        for correction in allowed:
            score = row.get(correction, math.nan)
            if math.isfinite(score) and (best is None or score < best[0]):
                best = score, method, correction
    if best is None:
        # Nothing finite, or no batch norm where only resetting them was allowed.
        return next(iter(scores)), "naive"
    return best[1], best[2]
