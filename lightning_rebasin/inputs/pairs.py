"""The pairs of inputs that a caller gives, checked and brought to the network's device and precision."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_rebasin.errors import (
    ConfigurationError,
    DataError,
    NonFiniteError,
)
from lightning_rebasin.inputs.loss import CHUNK_SIZE, InputLoss, OutputLoss
from lightning_rebasin.inputs.network import InputNetwork

#: Lowest and highest value of an input: numbers, or tensors that broadcast over one input (one value per channel).
Bounds = tuple[float | Tensor, float | Tensor]


@dataclass(frozen=True, eq=False)
class InputPairs:
    """Pairs of inputs of one network, and the loss between them.

    Args:
        a: First ends, shape ``(pairs, *input)``.
        b: Second ends.
        loss: The loss as a function of the input; pair i is owner i.
    """

    a: Tensor
    b: Tensor
    loss: InputLoss

    @property
    def owners(self) -> Tensor:
        """The numbers of the pairs."""
        return torch.arange(len(self.a), device=self.a.device)


def make_pairs(
    module: nn.Module,
    x_a: Tensor,
    x_b: Tensor,
    target: Any,
    *,
    loss: OutputLoss | None = None,
    embedding: str | None = None,
    chunk_size: int = CHUNK_SIZE,
) -> InputPairs:
    """Check what a caller gave, and make the pairs.

    Args:
        module: The network.
        x_a: First ends, floats of shape ``(pairs, *input)``; with ``embedding`` integers.
        x_b: Second ends of the same shape.
        target: What the loss compares outputs with: one per pair, one number for all, or ``None``.
        loss: ``loss(output, target)`` with one number per sample; the cross-entropy if omitted.
        embedding: Name of the layer that embeds tokens.
        chunk_size: How many inputs go through the network at once.

    Raises:
        DataError: Inputs or targets do not fit each other or the network.
        ConfigurationError: The embedding or the chunk size cannot work.
        NonFiniteError: An input holds NaN or infinity.
    """
    if chunk_size < 1:
        raise ConfigurationError(f"chunk_size={chunk_size}: must be 1 or more")
    network = InputNetwork(module, embedding)
    _check_shapes(x_a, x_b)
    device = network.like.device
    tokens = None
    if network.embeds:
        tokens, other = _tokens(x_a, device), _tokens(x_b, device)
        a, b = network.embed(tokens), network.embed(other)
    else:
        a, b = _floats(x_a, network), _floats(x_b, network)
    targets = _targets(target, len(a), device)
    network.try_out(a[:1], None if tokens is None else tokens[:1])
    return InputPairs(
        a,
        b,
        InputLoss(
            network, targets, loss, tokens=tokens, chunk_size=chunk_size
        ),
    )


def limits_of(
    bounds: Bounds | None, inputs: Tensor
) -> tuple[Tensor, Tensor] | None:
    """Bounds as tensors that broadcast over inputs.

    Args:
        bounds: Lowest and highest value, or ``None``.
        inputs: Inputs of the same shape, dtype and device.

    Raises:
        ConfigurationError: The bounds are not a pair, are the wrong way round, or do not broadcast.
    """
    if bounds is None:
        return None
    shape = inputs.shape[1:]
    try:
        low, high = (
            torch.as_tensor(bound, dtype=inputs.dtype, device=inputs.device)
            for bound in bounds
        )
        fits = (inputs[0] + low + high).shape == shape
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigurationError(
            f"bounds must be a pair (low, high) of numbers or of tensors that broadcast over one input of shape "
            f"{tuple(shape)}: {error}"
        ) from error
    if not fits or not bool((low <= high).all()):
        raise ConfigurationError(
            f"bounds must be (low, high) with low ≤ high that broadcast over one input of shape {tuple(shape)}, got "
            f"shapes {tuple(low.shape)} and {tuple(high.shape)}"
        )
    return low, high


def check_inside(limits: tuple[Tensor, Tensor] | None, **ends: Tensor) -> None:
    """Raise unless all inputs lie between limits.

    Raises:
        DataError: One lies outside.
    """
    if limits is None:
        return
    low, high = limits
    # Normalising the inputs and the bounds may round differently.
    slack = 1e-5 * float((high - low).max())
    for name, inputs in ends.items():
        outside = (inputs < low - slack) | (inputs > high + slack)
        pairs = outside.reshape(len(inputs), -1).any(1).nonzero()
        if len(pairs):
            raise DataError(
                f"{name} of pair {int(pairs[0, 0])} lies outside bounds=; normalise the bounds as the inputs were"
            )


def check_numbers(**numbers: float) -> None:
    """Raise unless every option is a finite number that is not negative.

    Raises:
        ConfigurationError: One is not.
    """
    for name, number in numbers.items():
        if not math.isfinite(number) or number < 0:
            raise ConfigurationError(
                f"{name}={number}: must be a finite number, 0 or more"
            )


def check_counts(learning_rate: float, **counts: tuple[int, int]) -> None:
    """Raise unless every count is as large as it must be, and the learning rate above 0.

    Args:
        learning_rate: Step size.
        **counts: Option and its least value.

    Raises:
        ConfigurationError: One is too small.
    """
    for name, (number, least) in counts.items():
        if number < least:
            raise ConfigurationError(
                f"{name}={number}: must be {least} or more"
            )
    if not 0 < learning_rate < math.inf:
        raise ConfigurationError(
            f"learning_rate={learning_rate}: must be above 0"
        )


def _check_shapes(x_a: object, x_b: object) -> None:
    for name, value in (("x_a", x_a), ("x_b", x_b)):
        if not isinstance(value, Tensor):
            raise DataError(
                f"{name} must be a tensor of inputs, pairs along the first axis, not a {type(value).__name__}"
            )
    assert isinstance(x_a, Tensor)
    assert isinstance(x_b, Tensor)
    if x_a.shape != x_b.shape:
        raise DataError(
            f"both ends of a path need one shape, got x_a {tuple(x_a.shape)} and x_b {tuple(x_b.shape)}"
        )
    if x_a.ndim < 2 or not len(x_a):
        raise DataError(
            f"inputs need a first axis over pairs (at least one) and the axes of one input, got shape "
            f"{tuple(x_a.shape)}: for a single pair pass x[None]"
        )


def _floats(inputs: Tensor, network: InputNetwork) -> Tensor:
    """Inputs in the precision of the network."""
    if not inputs.is_floating_point():
        raise DataError(
            f"inputs of dtype {inputs.dtype} have nothing between them: turn images into floats as the network wants "
            "them, or name the layer that embeds tokens with embedding="
        )
    like = network.like
    return finite(inputs.detach().to(like.device, like.dtype, copy=True))


def finite(inputs: Tensor) -> Tensor:
    """The inputs themselves.

    Raises:
        NonFiniteError: One holds NaN or infinity.
    """
    bad = ~inputs.isfinite().reshape(len(inputs), -1).all(1)
    if bool(bad.any()):
        raise NonFiniteError(
            f"input {int(bad.nonzero()[0, 0])} holds NaN or infinity"
        )
    return inputs


def _tokens(inputs: Tensor, device: torch.device) -> Tensor:
    if inputs.is_floating_point():
        raise DataError(
            f"embedding= embeds tokens, integers, but the inputs are {inputs.dtype}; leave it out if they are "
            "embedded already"
        )
    return inputs.detach().to(device, copy=True)


def _targets(target: Any, pairs: int, device: torch.device) -> Tensor | None:
    """One target per pair."""
    if target is None:
        return None
    targets = torch.as_tensor(target).detach().to(device, copy=True)
    if targets.ndim == 0:
        return targets.expand(pairs)
    if len(targets) != pairs:
        raise DataError(f"{len(targets)} targets for {pairs} pairs")
    return targets
