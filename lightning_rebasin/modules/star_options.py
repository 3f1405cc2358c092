"""Which rays of a star one training step goes along, and when the ends are matched; checked once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final, get_args

import numpy as np

from lightning_rebasin.errors import ConfigurationError

#: When the ends are brought near to the centre.
Matching = Literal["never", "start", "epoch"]


@final
@dataclass(frozen=True)
class StarOptions:
    """What a StarModule is asked for beside what all paths have.

    Args:
        ends: Number of ends.
        match: When they are matched.
        ends_per_step: Ends drawn for one step.
        ts_per_step: Points drawn on the ray to each of them.

    Raises:
        ConfigurationError: A value cannot work.

    Example:
        >>> StarOptions(4).rays(np.random.default_rng(0))
        [3, 3, 3]
    """

    ends: int
    match: Matching = "never"
    ends_per_step: int = 1
    ts_per_step: int = 3

    def __post_init__(self) -> None:
        if self.match not in get_args(Matching):
            raise ConfigurationError(
                f"match={self.match!r} is unknown; choose one of {get_args(Matching)}"
            )
        if not 1 <= self.ends_per_step <= self.ends:
            raise ConfigurationError(
                f"ends_per_step={self.ends_per_step} must be between 1 and the number of ends, {self.ends}"
            )
        if self.ts_per_step < 1:
            raise ConfigurationError(
                f"ts_per_step={self.ts_per_step} must be at least 1"
            )

    def rays(self, generator: np.random.Generator) -> list[int]:
        """The end of every point of one step: some ends without repetition, each as often as it has points."""
        chosen = generator.choice(self.ends, self.ends_per_step, replace=False)
        return [int(end) for end in chosen for _ in range(self.ts_per_step)]
