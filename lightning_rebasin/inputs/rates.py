"""How well a score tells adversarial inputs from real ones: AUROC, and what is caught at a rate of false alarms."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_rebasin.errors import DataError


def auroc(scores: Tensor, positive: Tensor) -> float:
    """The probability that a positive scores above a negative, ties counted half.

    Unlike torchmetrics' function it takes scores of any size: a sigmoid would make losses above 17 the same.

    Args:
        scores: Shape ``(n,)``.
        positive: Which are positive, booleans of shape ``(n,)``.

    Returns:
        Between 0 and 1.

    Raises:
        DataError: There is no positive, no negative, or a score is NaN.

    Example:
        >>> auroc(torch.tensor([0.1, 0.4, 0.4, 90.0]), torch.tensor([False, False, True, True]))
        0.875
    """
    high, low = _split(scores, positive)
    # Of each positive: how many negatives are below, and how many are not above.
    below = torch.searchsorted(low, high, right=False)
    not_above = torch.searchsorted(low, high, right=True)
    wins = 0.5 * (below + not_above).double()
    return float(wins.mean() / len(low))


def true_positive_rate(
    scores: Tensor, positive: Tensor, false_positive_rate: float
) -> float:
    """The share of positives above a threshold that at most this share of the negatives exceeds.

    Args:
        scores: Shape ``(n,)``.
        positive: Which are positive, booleans of shape ``(n,)``.
        false_positive_rate: Between 0 and 1.

    Returns:
        Between 0 and 1.

    Raises:
        DataError: There is no positive, no negative, or a score is NaN.

    Example:
        >>> true_positive_rate(torch.tensor([0.1, 0.4, 0.3, 90.0]), torch.tensor([False, False, True, True]), 0.0)
        0.5
    """
    high, low = _split(scores, positive)
    # The epsilon: 0.05 · 100 negatives must allow five of them, though 0.05 · 100 may round to 4.999….
    allowed = int(false_positive_rate * len(low) + 1e-9)
    if allowed >= len(low):
        return 1.0
    limit = low[len(low) - 1 - allowed]
    return float((high > limit).double().mean())


def _split(scores: Tensor, positive: Tensor) -> tuple[Tensor, Tensor]:
    """Scores of positives, and of negatives in ascending order, in double precision."""
    scores, positive = scores.detach().double().cpu(), positive.bool().cpu()
    if bool(scores.isnan().any()):
        raise DataError("a score is NaN")
    high, low = scores[positive], scores[~positive]
    if not len(high) or not len(low):
        raise DataError(
            f"detection needs adversarial and real inputs, got {len(high)} and {len(low)}"
        )
    return high, low.sort().values
