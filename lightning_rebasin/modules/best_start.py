"""Where a MergeModule starts if several matchings compete: the one with the best midpoint on held-out batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from lightning_rebasin.landscape.batches import batch_size
from lightning_rebasin.landscape.copies import isolated_rng
from lightning_rebasin.merging.processes import Total, alone
from lightning_rebasin.modules.candidates import estimate_statistics
from lightning_rebasin.modules.midpoint_loss import MidpointLoss
from lightning_rebasin.symmetry.actions.transform import Transform


def best_start(
    loss: MidpointLoss,
    starts: Sequence[Transform],
    batches: Sequence[Any],
    *,
    recent: Sequence[Any] = (),
    lam: float = 0.5,
    total: Total = alone,
) -> Transform:
    """The start whose midpoint has the lowest loss in eval mode; the first of equals, and without batches.

    Args:
        loss: Computes the loss, where the network is.
        starts: Where learning may start.
        batches: A few held-out batches.
        recent: Training batches on which the batch-norm statistics of each midpoint are estimated.
        lam: Where on the segment the loss is taken.
        total: Sums a tensor over processes, each of which has batches of its own.
    """
    if len(starts) < 2 or not batches:
        return starts[0]
    with torch.no_grad(), loss.evaluating():
        sums = [_sums(loss, s, batches, recent, lam) for s in starts]
    # Losses that are not numbers are no argument for a start.
    losses = []
    for value, samples in total(torch.tensor(sums).double()).tolist():
        mean = value / max(samples, 1)
        losses.append(math.inf if math.isnan(mean) else mean)
    return starts[losses.index(min(losses))]


def _sums(
    loss: MidpointLoss,
    start: Transform,
    batches: Sequence[Any],
    recent: Sequence[Any],
    lam: float,
) -> tuple[float, float]:
    """Sum of the losses of all samples at one midpoint, and their number."""
    weights = loss.ends.callable_weights(loss.ends.midpoint(start, lam))
    weights |= estimate_statistics(loss.inner, weights, recent)
    value, samples = 0.0, 0
    for number, batch in enumerate(batches):
        size = batch_size(batch)
        with isolated_rng():
            mean = loss.of(batch, number, lam)(weights)
        value += size * float(mean)
        samples += size
    return value, float(samples)
