"""Where a MergeModule starts if several matchings compete: the one with the best midpoint on held-out batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from lightning_rebasin.landscape.batches import batch_size
from lightning_rebasin.landscape.copies import isolated_rng
from lightning_rebasin.modules.candidates import estimate_statistics
from lightning_rebasin.modules.midpoint_loss import MidpointLoss
from lightning_rebasin.symmetry.actions.transform import Transform


def best_start(
    loss: MidpointLoss,
    starts: Sequence[Transform],
    batches: Sequence[Any],
    recent: Sequence[Any] = (),
    lam: float = 0.5,
) -> Transform:
    """The start whose midpoint has the lowest loss in eval mode; the first of equals, and without batches.

    Args:
        loss: Computes the loss, where the network is.
        starts: Where learning may start.
        batches: A few held-out batches.
        recent: Training batches on which the batch-norm statistics of each midpoint are estimated.
        lam: Where on the segment the loss is taken.
    """
    if len(starts) < 2 or not batches:
        return starts[0]
    with torch.no_grad(), loss.evaluating():
        losses = [_mean(loss, s, batches, recent, lam) for s in starts]
    return starts[losses.index(min(losses))]


def _mean(
    loss: MidpointLoss,
    start: Transform,
    batches: Sequence[Any],
    recent: Sequence[Any],
    lam: float,
) -> float:
    """Mean loss at one midpoint; infinite if it is not a number, for that is no argument for a start."""
    weights = loss.ends.callable_weights(loss.ends.midpoint(start, lam))
    weights |= estimate_statistics(loss.inner, weights, recent)
    total, samples = 0.0, 0
    for number, batch in enumerate(batches):
        size = batch_size(batch)
        with isolated_rng():
            value = loss.of(batch, number, lam)(weights)
        total += size * float(value)
        samples += size
    mean = total / max(samples, 1)
    return math.inf if math.isnan(mean) else mean
