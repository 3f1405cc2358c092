"""How far apart two sets of weights are."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor


class Separation(NamedTuple):
    """Euclidean distance and cosine between two sets of weights."""

    distance: float
    cosine: float


def separation(
    a: Mapping[str, Tensor], b: Mapping[str, Tensor], names: Iterable[str]
) -> Separation:
    """Distance ``‖a − b‖₂`` and cosine ``⟨a, b⟩ / (‖a‖ ‖b‖)`` over the named tensors together, in float64.

    Args:
        a: Weights.
        b: Weights with the same names and shapes.
        names: Which tensors count: usually the parameters, without running statistics.

    Returns:
        Both numbers; the cosine with a zero vector is NaN.

    Example:
        >>> a, b = {"w": torch.tensor([3.0, 0.0])}, {"w": torch.tensor([0.0, 4.0])}
        >>> separation(a, b, ["w"])
        Separation(distance=5.0, cosine=0.0)
    """
    squared = inner = norm_a = norm_b = 0.0
    for name in names:
        # One tensor at a time: a float64 copy of a whole large model would not fit.
        x = a[name].detach().to("cpu", torch.float64).flatten()
        y = b[name].detach().to("cpu", torch.float64).flatten()
        squared += float((x - y).square().sum())
        inner += float(x @ y)
        norm_a += float(x @ x)
        norm_b += float(y @ y)
    product = math.sqrt(norm_a * norm_b)
    return Separation(
        math.sqrt(squared), inner / product if product else math.nan
    )
