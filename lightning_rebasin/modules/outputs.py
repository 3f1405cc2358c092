"""Learning without labels: how far a network's outputs are from the mix of the outputs of both ends.

At the point λ the merged network should answer what its two ends answer together, ``(1 − λ)·a(x) + λ·b(x)``.  The
distance of its outputs z(x) to that mix,

    ``Σ ‖z(x) − mix(x)‖² / Σ ‖mix(x) − mean of mix over the batch‖²``,

is 0 for a perfect merge and about 1 for a network that answers the same to everything.  It needs inputs only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lightning_rebasin.errors import ConfigurationError
from lightning_rebasin.matching.activation import model_inputs
from lightning_rebasin.symmetry.run.examples import output_tensors

State = Mapping[str, Tensor]
#: A spread this small, relative to the square, is that of a constant.
_CONSTANT = 1e-9


def outputs_at(module: nn.Module, weights: State, batch: Any) -> list[Tensor]:
    """What a network answers at some weights, without anything that is a number for the whole batch, such as a loss.

    Args:
        module: The network.
        weights: Parameters and buffers by name; names left out keep the network's own.
        batch: What a data loader gave; only the inputs in it are used.

    Raises:
        DataError: The inputs cannot be told in the batch.
        ConfigurationError: The network returns no numbers.
    """
    args, keywords = model_inputs(module, batch)
    output = functional_call(module, dict(weights), args, keywords)
    found = []
    for tensor in output_tensors(output).values():
        if tensor.is_floating_point() and tensor.ndim:
            found.append(tensor)
    if not found:
        raise ConfigurationError(
            f"loss='outputs' compares what {type(module).__name__} returns, and that holds no floating-point tensor: "
            "give a loss"
        )
    return found


def mixed_outputs(
    module: nn.Module, ends: tuple[State, State], batch: Any, lam: float
) -> list[Tensor]:
    """``(1 − λ)·a(x) + λ·b(x)``: what both ends answer, in eval mode and without gradients.

    Args:
        module: The network; its modes are put back.
        ends: Weights of both ends.
        batch: What a data loader gave.
        lam: The share of the second end.
    """
    with torch.no_grad(), evaluating(module):
        a, b = (outputs_at(module, weights, batch) for weights in ends)
    return [
        torch.lerp(first, second, lam)
        for first, second in zip(a, b, strict=True)
    ]


def distance(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
    """Squared distance of outputs to the wanted ones, relative to the spread of those over the batch.

    Args:
        found: Outputs; gradients flow into them.
        wanted: Outputs of the same shapes.

    Example:
        >>> wanted = [torch.tensor([[0.0], [2.0]])]
        >>> distance([torch.ones(2, 1)], wanted).item()
        1.0
    """
    total = torch.zeros((), device=found[0].device)
    spread, level = torch.zeros_like(total), torch.zeros_like(total)
    for own, other in zip(found, wanted, strict=True):
        target = other.float()
        total = total + (own.float() - target).square().sum()
        spread += (target - target.mean(0)).square().sum()
        level += target.square().sum()
    # Where the ends answer the same to everything, their square takes the place of the spread.
    scale = torch.where(spread > _CONSTANT * level, spread, level)
    return total / scale.clamp(min=torch.finfo(scale.dtype).tiny)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """All parts in eval mode; afterwards each in its own mode again."""
    training = [part for part in module.modules() if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True
