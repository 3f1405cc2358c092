"""The numbers and choices that CurveModule and StarModule share, checked once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

import numpy as np

from lightning_rebasin.errors import ConfigurationError

#: Where on a path the loss of a step is taken.
Sampling = float | Literal["uniform", "beta"]


@final
@dataclass(frozen=True)
class PathOptions:
    """How t is drawn, and what is kept for evaluation.

    Args:
        t: ``"uniform"`` on (0, 1), ``"beta"``, or one fixed number inside (0, 1).
        beta: Both parameters of the beta distribution.
        pull: Weight of the regulariser.
        val_points: Points of every path that are validated, both ends among them.
        batch_norm_batches: Training batches kept for re-estimating batch-norm statistics.
        seed: Of everything drawn.

    Raises:
        ConfigurationError: A value cannot work.

    Example:
        >>> options = PathOptions(t="beta")
        >>> a, b = (options.draw_t(options.generator(step=3, batch_idx=1)) for _ in range(2))
        >>> a == b, 0 < a < 1
        (True, True)
        >>> options.val_grid
        (0.0, 0.25, 0.5, 0.75, 1.0)
    """

    t: Sampling = "uniform"
    beta: tuple[float, float] = (2.0, 2.0)
    pull: float = 0.0
    val_points: int = 5
    batch_norm_batches: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        # YAML and checkpoints written from it have lists.
        object.__setattr__(self, "beta", tuple(self.beta))
        if isinstance(self.t, str):
            if self.t not in ("uniform", "beta"):
                raise ConfigurationError(
                    f"t={self.t!r} is unknown; choose 'uniform', 'beta' or a number"
                )
        elif not 0 < self.t < 1:
            # At an end nothing that could be learned takes part.
            raise ConfigurationError(f"t={self.t!r} must lie inside (0, 1)")
        if len(self.beta) != 2 or not min(self.beta) > 0:
            raise ConfigurationError(
                f"beta={self.beta!r} must be two positive numbers"
            )
        if not 0 <= self.pull < float("inf"):
            raise ConfigurationError(
                f"the weight of the regulariser must not be negative, got {self.pull}"
            )
        if self.val_points < 2:
            raise ConfigurationError(
                f"val_points={self.val_points} must be at least 2: both ends count"
            )
        if self.batch_norm_batches < 1:
            raise ConfigurationError(
                f"batch_norm_batches={self.batch_norm_batches} must be at least 1"
            )

    @property
    def val_grid(self) -> tuple[float, ...]:
        """The t of validation, evenly spaced."""
        last = self.val_points - 1
        return tuple(number / last for number in range(self.val_points))

    def generator(self, step: int, batch_idx: int) -> np.random.Generator:
        """Random numbers of one batch: the same on every process, and the same again after a resume."""
        return np.random.default_rng([self.seed, step, batch_idx])

    def draw_t(self, generator: np.random.Generator) -> float:
        """One t."""
        if self.t == "uniform":
            return float(generator.uniform())
        if self.t == "beta":
            return float(generator.beta(*self.beta))
        return float(self.t)
