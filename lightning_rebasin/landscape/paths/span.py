"""Points that one or more directions reach from a set of weights: what a loss surface is drawn over.

Source: Li et al., "Visualizing the Loss Landscape of Neural Nets", NeurIPS 2018, section 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import final

from torch import Tensor

from lightning_rebasin.errors import ConfigurationError
from lightning_rebasin.landscape.points import Point, State


@final
@dataclass(frozen=True, eq=False)
class Span:
    """``θ + Σ_i x_i·d_i`` for directions d that are used as they are: neither normalised nor made orthogonal.

    Args:
        origin: The weights θ.
        directions: Changes of θ by name; tensors that a direction lacks stay those of θ.

    Raises:
        ConfigurationError: There is no direction, or one names a tensor that θ lacks, or has another shape there.

    Example:
        >>> import torch
        >>> span = Span({"w": torch.ones(2)}, ({"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([0.0, 2.0])}))
        >>> span.at(0.5, -1.0).state()["w"].tolist()
        [1.5, -1.0]
    """

    origin: State
    directions: tuple[Mapping[str, Tensor], ...]

    def __post_init__(self) -> None:
        if not self.directions:
            raise ConfigurationError("a span needs at least one direction")
        for number, direction in enumerate(self.directions):
            for name, change in direction.items():
                own = self.origin.get(name)
                if own is None or own.shape != change.shape:
                    raise ConfigurationError(
                        f"direction {number + 1}: tensor {name!r} of shape {tuple(change.shape)} does not fit the "
                        "weights"
                    )

    @cached_property
    def anchors(self) -> tuple[State, ...]:
        """The origin, and the weights one step along each direction."""
        found: list[State] = [self.origin]
        for direction in self.directions:
            moved = dict(self.origin)
            for name, change in direction.items():
                own = self.origin[name]
                moved[name] = own + change.to(own)
            found.append(moved)
        return tuple(found)

    def at(self, *steps: float) -> Point:
        """The point so many steps along each direction.

        Raises:
            ConfigurationError: There are not as many steps as directions.
        """
        if len(steps) != len(self.directions):
            raise ConfigurationError(
                f"{len(steps)} steps for {len(self.directions)} directions"
            )
        return Point(self.anchors, (1.0 - sum(steps), *steps))
