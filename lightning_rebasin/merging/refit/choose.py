"""Which of several merged networks is best, measured on held-out batches.

Without labels the judge is the distance of a network's outputs to the mean of the ends' outputs, relative to the
spread of that mean:

    Σ ‖f(x) − Σ_i w_i·f_i(x)‖² / Σ ‖mean(x) − mean over x‖²

The square takes the place of the spread where the mean is constant.  With a loss it is the mean loss.
One batch is looked at at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lightning_rebasin.errors import DataError
from lightning_rebasin.merging.processes import (
    Total,
    alone,
    device_of,
    total_number,
)
from lightning_rebasin.merging.refit.batches import Batches, batch_size
from lightning_rebasin.merging.refit.fitting import Ends
from lightning_rebasin.merging.statistics import outputs
from lightning_rebasin.symmetry.run.examples import output_tensors

#: Given a network and a batch: the mean loss over the batch.
Loss = Callable[[nn.Module, Any], Tensor | float]
#: What candidates are called.
Name = TypeVar("Name", bound=str)
#: A spread this small, relative to the square, is that of a constant in float32.
_CONSTANT = 1e-12


def losses(
    candidates: Mapping[Name, nn.Module],
    batches: Batches,
    loss: Loss,
    *,
    total: Total = alone,
) -> dict[Name, float]:
    """Mean loss of each candidate over the samples of all processes."""
    totals = dict.fromkeys(candidates, 0.0)
    samples = 0
    with torch.no_grad():
        for batch in batches:
            size = max(batch_size(batch), 1)
            samples += size
            for name, module in candidates.items():
                totals[name] += size * float(loss(module, batch))
    device = _device(candidates)
    every = max(total_number(total, samples, device), 1.0)
    return {
        name: total_number(total, own, device) / every
        for name, own in totals.items()
    }


def distances(
    candidates: Mapping[Name, nn.Module],
    batches: Iterable[Any],
    ends: Ends,
    *,
    total: Total = alone,
) -> dict[Name, float]:
    """Distance of each candidate's outputs to the mean of the ends' outputs, relative to that mean's variance.

    Args:
        candidates: The networks.
        batches: Batches of this process.
        ends: What they are compared with.
        total: Sums a tensor over processes, each of which has a batch.

    Raises:
        DataError: The outputs have another shape in another batch, so that they have no common mean.
    """
    totals = dict.fromkeys(candidates, 0.0)
    count = 0
    sums = [torch.zeros(()), torch.zeros(())]
    with torch.no_grad():
        for batch in batches:
            wanted = _mean_outputs(ends, batch)
            if count and wanted.shape[1:] != sums[0].shape:
                raise DataError(
                    "networks are compared by their outputs, which have another shape in another batch: pad the "
                    "batches to one length, or choose how to match instead of trying several ways"
                )
            count += 1
            sums[0] = sums[0] + wanted.mean(0)
            sums[1] = sums[1] + wanted.square().mean(0)
            for name, module in candidates.items():
                missing = _flat_output(module, batch) - wanted
                totals[name] += float(missing.square().mean(0).sum())
    device = _device(candidates)
    every = total_number(total, count, device)
    if not every:
        return dict.fromkeys(candidates, math.nan)
    mean, square = total(sums[0]) / every, total(sums[1]) / every
    spread = float((square - mean.square()).clamp_min(0).sum())
    level = float(square.sum())
    # The spread of a constant output is rounding error: its square takes the place.
    scale = spread if spread > _CONSTANT * level else level or 1.0
    return {
        name: total_number(total, own, device) / every / scale
        for name, own in totals.items()
    }


def _device(candidates: Mapping[Name, nn.Module]) -> torch.device:
    return device_of(next(iter(candidates.values())))


def best(scores: Mapping[Name, float]) -> Name:
    """The name with the lowest finite score, the last of equals; the first name if there is none."""
    finite = {n: s for n, s in scores.items() if math.isfinite(s)}
    if not finite:
        return next(iter(scores))
    lowest = min(finite.values())
    return [name for name, score in finite.items() if score == lowest][-1]


def _mean_outputs(ends: Ends, batch: Any) -> Tensor:
    """Mean of what the ends return, float64 ``(samples, numbers per sample)``."""
    total = torch.zeros(())
    for state, share in zip(ends.states, ends.shares, strict=True):
        if share:
            ends.module.load_state_dict(state)
            total = total + share * _flat_output(ends.module, batch)
    return total


def _flat_output(module: nn.Module, batch: Any) -> Tensor:
    size = max(batch_size(batch), 1)
    output = next(iter(outputs(module, [batch])))
    flat = []
    for tensor in output_tensors(output).values():
        if tensor.is_floating_point():
            even = tensor.numel() % size == 0
            shape = (size, -1) if even else (1, -1)
            flat.append(tensor.double().reshape(shape))
    rows = {len(tensor) for tensor in flat}
    if len(rows) > 1:
        flat = [tensor.reshape(1, -1) for tensor in flat]
    return torch.cat(flat, dim=1)
