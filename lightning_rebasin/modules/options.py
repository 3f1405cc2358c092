"""The numbers and choices of a MergeModule, checked once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final, get_args

import numpy as np

from lightning_rebasin.errors import ConfigurationError
from lightning_rebasin.matching.straight_through import Projection, StandsFor


@final
@dataclass(frozen=True)
class MergeOptions:
    """How the straight-through estimator is run.

    Args:
        lam: Where the loss is taken: a number in (0, 1), or an interval inside [0, 1] from which every batch draws λ.
        stands_for: Whether the free parameters stand for the permuted source or for the midpoint.
        projection: Whether they are projected by inner product or by L2 distance.
        project_every: Optimizer steps from one projection to the next.
        batch_norm_batches: Training batches kept for re-estimating batch-norm statistics.
        seed: Of the order of the visits and of λ.

    Raises:
        ConfigurationError: A value cannot work.

    Example:
        >>> MergeOptions(lam=(0.4, 0.6)).score_lam
        0.5
    """

    lam: float | tuple[float, float] = 0.5
    stands_for: StandsFor = "endpoint"
    projection: Projection = "inner_product"
    project_every: int = 1
    batch_norm_batches: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        low, high = self.interval
        if not (0 < low == high < 1 or 0 <= low < high <= 1):
            raise ConfigurationError(
                f"lam={self.lam!r} must be a number inside (0, 1) or an interval inside [0, 1]"
            )
        for name, allowed in (
            ("stands_for", get_args(StandsFor)),
            ("projection", get_args(Projection)),
        ):
            if getattr(self, name) not in allowed:
                raise ConfigurationError(
                    f"{name}={getattr(self, name)!r} is unknown; choose one of {allowed}"
                )
        for name in ("project_every", "batch_norm_batches"):
            if getattr(self, name) < 1:
                raise ConfigurationError(
                    f"{name}={getattr(self, name)} must be at least 1"
                )

    @property
    def interval(self) -> tuple[float, float]:
        """The interval of λ; a single number is an empty one."""
        return (
            (self.lam, self.lam)
            if isinstance(self.lam, int | float)
            else (self.lam[0], self.lam[1])
        )

    @property
    def score_lam(self) -> float:
        """Where candidates are scored and merged: the middle of the interval."""
        return sum(self.interval) / 2

    def draw_lam(self, step: int, batch_idx: int) -> float:
        """λ of one batch: the same on every process, and the same again after a resume."""
        low, high = self.interval
        return (
            low
            if low == high
            else float(
                np.random.default_rng([self.seed, step, batch_idx]).uniform(
                    low, high
                )
            )
        )
