"""Sums over several processes, each of which has batches of its own.

What is estimated on data here is made of sums over samples or batches.  Several processes get what one process would
get on all their batches together by adding these sums up; every decision is taken on the totals, so that all processes
take the same one.  Who can add is not known here: the caller gives a function, such as

    lambda tensor: trainer.strategy.reduce(tensor, reduce_op="sum")

It is collective: all processes have to call it equally often.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

#: Sums a tensor over all processes; it may overwrite what it is given.
Total = Callable[[Tensor], Tensor]


def alone(tensor: Tensor) -> Tensor:
    """The sum over a single process.

    Example:
        >>> alone(torch.tensor([1.0, 2.0])).tolist()
        [1.0, 2.0]
    """
    return tensor


def device_of(module: nn.Module) -> torch.device:
    """Where the weights of a network lie; the CPU if it has none."""
    first = next(iter(module.state_dict().values()), torch.empty(0))
    return torch.as_tensor(first).device


def total_number(
    total: Total, number: float, device: torch.device | None = None
) -> float:
    """A number summed over all processes.

    Args:
        total: Sums a tensor.
        number: This process's own.
        device: Where the sum is made; NCCL reduces nothing that lies on the CPU.

    Example:
        >>> total_number(lambda tensor: 2 * tensor, 3)
        6.0
    """
    own = torch.tensor(float(number), dtype=torch.float64, device=device)
    return float(total(own))
