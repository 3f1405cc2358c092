"""Averages over batches, as Lightning forms them, in float64.

Lightning reduces what ``self.log`` receives during validation by mean (weighted by batch size), sum, minimum or
maximum.  The same is done here, once per point λ, so that the ends of a barrier curve equal what ``trainer.validate``
prints.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_rebasin.errors import ConfigurationError

Reduction = Literal["mean", "sum", "min", "max"]
_NAMES: Mapping[Any, Reduction] = {
    "mean": "mean", "avg": "mean", torch.mean: "mean",
    "sum": "sum", torch.sum: "sum",
    "min": "min", torch.min: "min", min: "min",
    "max": "max", torch.max: "max", max: "max",
}  # fmt: skip


def reduction_name(reduce_fx: str | Callable[[Any], Any]) -> Reduction:
    """Name of the reduction that ``self.log(reduce_fx=...)`` asks for.

    Raises:
        ConfigurationError: Lightning itself would not accept it.
    """
    key = reduce_fx.lower() if isinstance(reduce_fx, str) else reduce_fx
    if key not in _NAMES:
        raise ConfigurationError(
            f"reduce_fx={reduce_fx!r} is not supported; Lightning takes mean, sum, min or max"
        )
    return _NAMES[key]


@dataclass
class Average:
    """A running mean, sum, minimum or maximum in float64.

    Example:
        >>> average = Average("mean")
        >>> average.update(1.0, 3.0)
        >>> average.update(5.0, 1.0)
        >>> average.value
        2.0
    """

    reduction: Reduction
    total: Tensor | float = 0.0
    weight: float = 0.0
    _started: bool = field(default=False, repr=False)

    def update(self, value: Tensor | float, weight: float = 1.0) -> None:
        """Add one value; ``weight`` is the number of samples behind it."""
        number: Tensor | float = value
        if isinstance(value, Tensor):
            # Apple's MPS devices have no float64.
            number = (
                value.detach()
                .squeeze()
                .to(
                    "cpu" if value.device.type == "mps" else value.device,
                    torch.float64,
                )
            )
        self.weight += weight
        if self.reduction == "mean":
            self.total = self.total + number * weight
        elif self.reduction == "sum":
            self.total = self.total + number
        elif not self._started:
            self.total = number
        else:
            pair = torch.stack(
                [
                    torch.as_tensor(n, dtype=torch.float64, device="cpu")
                    for n in (self.total, number)
                ]
            )
            self.total = (
                pair.amin() if self.reduction == "min" else pair.amax()
            )
        self._started = True

    @property
    def value(self) -> float:
        """The reduced value; NaN before the first update."""
        if not self._started:
            return math.nan
        return (
            float(self.total) / self.weight
            if self.reduction == "mean"
            else float(self.total)
        )

    def state(self) -> tuple[Reduction, float, float]:
        """``(reduction, total, weight)``: what has to travel between processes."""
        return self.reduction, float(self.total), self.weight

    @classmethod
    def merge(cls, states: list[tuple[Reduction, float, float]]) -> Average:
        """The average over several processes."""
        reduction = states[0][0]
        merged = cls(reduction)
        for _, total, weight in states:
            if reduction == "mean":
                merged.total, merged.weight, merged._started = (
                    merged.total + total,
                    merged.weight + weight,
                    True,
                )
            else:
                merged.update(total, weight)
        return merged
