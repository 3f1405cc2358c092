"""Optimal inputs: noise that is moved until a network is sure of its class.

The ends of a path need not be data.  An input optimised from noise is an end for every class and every network, also
for one that was never trained, where connectivity says something about the architecture and not about the data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_rebasin.errors import ConfigurationError
from lightning_rebasin.inputs.bypass import Penalty
from lightning_rebasin.inputs.descent import Schedule, Slope, SlopeAt, descend
from lightning_rebasin.inputs.loss import CHUNK_SIZE, InputLoss, OutputLoss
from lightning_rebasin.inputs.network import alone
from lightning_rebasin.inputs.pairs import (
    Bounds,
    check_counts,
    check_numbers,
    limits_of,
    make_pairs,
)


@dataclass(frozen=True, eq=False, repr=False)
class SyntheticInputs:
    """Inputs that were optimised from noise.

    Args:
        inputs: Shape ``(n, *input)``.
        losses: The loss of each.
        threshold: The loss that was wanted.
    """

    inputs: Tensor
    losses: tuple[float, ...]
    threshold: float

    @property
    def reached(self) -> tuple[bool, ...]:
        """Whether each loss is at or below the threshold."""
        return tuple(loss <= self.threshold for loss in self.losses)

    def __repr__(self) -> str:
        shape = tuple(self.inputs.shape[1:])
        low = sum(self.reached)
        return f"SyntheticInputs({len(self.losses)} of shape {shape}, {low} at or below {self.threshold:g})"


def optimal_inputs(
    module: nn.Module,
    target: Any,
    shape: Sequence[int],
    *,
    loss: OutputLoss | None = None,
    threshold: float = 0.1,
    noise: float = 0.1,
    steps: int = 1024,
    learning_rate: float = 0.01,
    shrinkage: float = 0.0,
    variation: float = 1e-8,
    bounds: Bounds | None = None,
    chunk_size: int = CHUNK_SIZE,
    seed: int = 0,
    progress: bool = False,
) -> SyntheticInputs:
    """Move noise by Adam until the loss for its target is low.

        minimise  L(x) + shrinkage · ‖x‖² / d + variation · TV(x)

    The module is run as a copy in eval mode and stays as it is to the bit, as in :func:`connect_inputs`.

    Args:
        module: A network, trained or not, whose ``forward`` takes a batch of inputs.
        target: What outputs shall be: one target per input along the first axis.
        shape: Shape of one input.
        loss: ``loss(output, target)``, differentiable, one number per sample; the cross-entropy if omitted.
        threshold: An input is ready when its loss is no higher.
        noise: Standard deviation of the noise at the start, in units of the input.
        steps: Steps of Adam at most.
        learning_rate: Step size of Adam.
        shrinkage: Weight of the mean square.
        variation: Weight of the total variation, for images.
        bounds: Lowest and highest value of an input.
        chunk_size: How many inputs go through the network at once.
        seed: Seeds the noise; input i has the same noise whatever others there are.
        progress: Show a progress bar.

    Returns:
        The inputs and their losses.

    Raises:
        DataError: The network does not take such inputs, or the targets do not fit.
        ConfigurationError: The loss is not differentiable or not one per sample, or an option cannot work.

    Example:
        >>> module = nn.Linear(2, 2, bias=False)
        >>> _ = module.weight.data.copy_(torch.eye(2))
        >>> found = optimal_inputs(module, torch.tensor([0, 1]), (2,), learning_rate=0.1)
        >>> found.reached, module(found.inputs).argmax(1)
        ((True, True), tensor([0, 1]))

    References:
        Vrabel, Shem-Ur, Oz, Krueger, "Input Space Mode Connectivity in Deep Neural Networks", ICLR 2025.
    """
    check_numbers(
        threshold=threshold,
        noise=noise,
        shrinkage=shrinkage,
        variation=variation,
    )
    check_counts(learning_rate, steps=(steps, 1))
    wanted = torch.as_tensor(target)
    if wanted.ndim == 0:
        raise ConfigurationError(
            f"target={target}: give one target per input, for instance torch.tensor([3, 3, 3]) for three of class 3"
        )
    with alone():
        start = _noise(len(wanted), shape, noise, seed)
        pairs = make_pairs(
            module, start, start, wanted, loss=loss, chunk_size=chunk_size
        )
        limits = limits_of(bounds, pairs.a)
        points = pairs.a if limits is None else pairs.a.clamp(*limits)
        pairs.loss.check_slope(points, pairs.owners)
        found = descend(
            points,
            _slope_at(pairs.loss, Penalty(shrinkage, variation)),
            Schedule(steps, learning_rate, threshold),
            bounds=limits,
            progress=progress,
            label="optimal inputs",
        )
    losses = tuple(found.losses.tolist())
    return SyntheticInputs(found.points.cpu(), losses, threshold)


def _noise(
    count: int, shape: Sequence[int], noise: float, seed: int
) -> Tensor:
    """Normal noise, drawn input by input."""
    rows = []
    for i in range(count):
        generator = torch.Generator().manual_seed(seed + i)
        rows.append(torch.randn(tuple(shape), generator=generator))
    return noise * torch.stack(rows)


def _slope_at(loss: InputLoss, penalty: Penalty) -> SlopeAt:
    """The penalised loss of inputs."""

    def slope_at(points: Tensor, numbers: Tensor) -> Slope:
        losses, gradients = loss.gradients(points, numbers)
        extra, push = penalty.value_and_gradient(points)
        return Slope(losses, losses + extra, gradients + push)

    return slope_at
