"""A star: one centre joined to every model by a line.

Source: Lin, Li, Wu, "Exploring neural network landscapes: star-shaped and geodesic connectivity" (arXiv 2404.06391).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from lightning_rebasin.errors import ConfigurationError
from lightning_rebasin.landscape.points import Point, State


@final
@dataclass(frozen=True, eq=False)
class Star:
    """The rays from a centre to models: ``(1 − t)·centre + t·θ_k``.

    Args:
        centre: Weights at t = 0 of every ray.
        models: Weights at t = 1 of ray k.

    Example:
        >>> import torch
        >>> star = Star({"w": torch.zeros(1)}, ({"w": torch.ones(1)}, {"w": torch.full((1,), 3.0)}))
        >>> star.at(1, 0.5).state()["w"].tolist()
        [1.5]
    """

    centre: State
    models: tuple[State, ...]

    def at(self, ray: int, t: float) -> Point:
        """The point at t on the ray to model number ``ray``.

        Raises:
            ConfigurationError: There is no such model.
        """
        if not 0 <= ray < len(self.models):
            raise ConfigurationError(
                f"ray {ray} does not exist: the star has {len(self.models)} models"
            )
        return Point((self.centre, self.models[ray]), (1.0 - t, t))
