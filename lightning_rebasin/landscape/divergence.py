"""How far apart the outputs of two networks are: the Jensen–Shannon divergence of their class probabilities.

    JS(p, q) = ½ KL(p ‖ m) + ½ KL(q ‖ m),   m = ½ (p + q),   in nats: between 0 and ln 2.

Its root is a metric, and so is the root of its mean over samples.  For close distributions ``8·JS = Σ_c dp_c²/p_c``,
the squared length element of Fisher and Rao (derived: second order of the logarithms), so that ``Σ_k √(8·JS_k)`` over
fine steps is the length of a path among distributions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_rebasin.errors import ConfigurationError

#: The logits of a module on a batch: samples along the first axis, classes along the second.
OutputFunction = Callable[[nn.Module, Any], Tensor]


def jensen_shannon(log_p: Tensor, log_q: Tensor) -> Tensor:
    """The mean Jensen–Shannon divergence of log-probabilities over all axes but the second.

    Args:
        log_p: Log-probabilities, classes along axis 1; finite.
        log_q: The same shape.

    Returns:
        A number in nats.

    Example:
        >>> p, q = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
        >>> round(float(jensen_shannon(p, q)), 6), round(float(jensen_shannon(p, p)), 6)
        (0.033822, 0.0)
    """
    log_m = torch.logaddexp(log_p, log_q) - math.log(2.0)
    p_part = log_p.exp() * (log_p - log_m)
    q_part = log_q.exp() * (log_q - log_m)
    return 0.5 * (p_part + q_part).sum(1).mean()


def log_probabilities(output: Tensor) -> Tensor:
    """Log-softmax over axis 1, in double precision: divergences of close outputs are differences of large numbers.

    Raises:
        ConfigurationError: The output has fewer than two axes, or one class.
    """
    if (
        not isinstance(output, Tensor)
        or output.ndim < 2
        or output.shape[1] < 2
    ):
        shape = tuple(output.shape) if isinstance(output, Tensor) else output
        raise ConfigurationError(
            f"outputs must be logits with samples along the first axis and two classes or more along the second, got "
            f"{shape!r}; pass output=, a function output(module, batch) that returns them"
        )
    # Apple's MPS devices have no float64.
    wide = output if output.device.type == "mps" else output.double()
    return wide.log_softmax(1)


def forward(module: nn.Module, batch: Any) -> Any:
    """The output of a module for a batch: a tensor, a tuple whose first item is the input, or keyword arguments."""
    if isinstance(batch, Mapping):
        return module(**batch)
    return module(batch[0] if isinstance(batch, tuple | list) else batch)
