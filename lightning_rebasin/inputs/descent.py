"""Adam on many inputs at once, each of which stops on its own.

Adam works element by element, so many inputs can share one loop without seeing each other: what comes out is the same
as one at a time.  An input whose loss reached the goal leaves the batch, and the others go on with their moments.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from tqdm import tqdm

_BETAS = (0.9, 0.999)
_EPSILON = 1e-8


@dataclass(frozen=True)
class Schedule:
    """How long inputs are moved, and how far at a time.

    Args:
        steps: Steps of Adam at most.
        learning_rate: How far an element moves in a step, about.
        goal: An input stops where its loss is no higher.
    """

    steps: int
    learning_rate: float
    goal: float


@dataclass(frozen=True, eq=False)
class Descent:
    """Where inputs went.

    Args:
        points: Of every input the place with the lowest objective, shape ``(n, *input)``.
        losses: The loss there, shape ``(n,)``.
        steps: How many steps each input took, shape ``(n,)``.
    """

    points: Tensor
    losses: Tensor
    steps: Tensor


@dataclass(frozen=True, eq=False)
class Slope:
    """What is known of the objective at some points.

    Args:
        losses: The loss alone: what decides whether a point has arrived.
        objectives: What is minimised.
        gradients: Its gradients.
    """

    losses: Tensor
    objectives: Tensor
    gradients: Tensor


#: The slope at the points of the inputs with these numbers.
SlopeAt = Callable[[Tensor, Tensor], Slope]
#: What the steps of the inputs with these numbers may not contain is taken out of a tensor.
Project = Callable[[Tensor, Tensor], Tensor]


@final
class ManyAdam:
    """The moments of Adam for a batch from which inputs may leave.

    Args:
        points: What will be moved.
        learning_rate: The step size.
    """

    def __init__(self, points: Tensor, learning_rate: float) -> None:
        self._rate = learning_rate
        self._first = torch.zeros_like(points)
        self._second = torch.zeros_like(points)
        self._count = 0

    def step(self, gradients: Tensor) -> Tensor:
        """What is to be added to the points."""
        self._count += 1
        self._first.lerp_(gradients, 1 - _BETAS[0])
        self._second.lerp_(gradients.square(), 1 - _BETAS[1])
        mean = self._first / (1 - _BETAS[0] ** self._count)
        square = self._second / (1 - _BETAS[1] ** self._count)
        return -self._rate * mean / (square.sqrt() + _EPSILON)

    def keep(self, chosen: Tensor) -> None:
        """Forget all inputs but these."""
        self._first = self._first[chosen]
        self._second = self._second[chosen]


def descend(
    points: Tensor,
    slope_at: SlopeAt,
    schedule: Schedule,
    *,
    project: Project | None = None,
    bounds: tuple[Tensor, Tensor] | None = None,
    progress: bool = False,
    label: str = "inputs",
) -> Descent:
    """Minimise an objective over many inputs.

    Args:
        points: Where to start, shape ``(n, *input)``.
        slope_at: The objective.
        schedule: When to stop.
        project: Takes out of gradients and steps what is not wanted.
        bounds: Lowest and highest value of an input.
        progress: Show a progress bar over the steps.
        label: What the bar says.

    Returns:
        The best places.

    Example:
        >>> def bowl(points, numbers):
        ...     value = points.square().sum(1)
        ...     return Slope(value, value, 2 * points)
        >>> found = descend(torch.ones(1, 2), bowl, Schedule(100, 0.1, 1e-3))
        >>> bool(found.losses[0] <= 1e-3)
        True
    """
    points = points.clone()
    best = points.clone()
    count = len(points)
    lowest = points.new_full((count,), torch.inf)
    losses = points.new_full((count,), torch.inf)
    taken = torch.zeros(count, dtype=torch.long, device=points.device)
    active = torch.arange(count, device=points.device)
    adam = ManyAdam(points, schedule.learning_rate)
    bar = tqdm(total=schedule.steps, desc=label, disable=not progress)
    for step in range(schedule.steps + 1):
        slope = slope_at(points, active)
        better = slope.objectives < lowest[active]
        improved = active[better]
        lowest[improved] = slope.objectives[better]
        losses[improved] = slope.losses[better]
        best[improved] = points[better]
        going = slope.losses > schedule.goal
        arrived = active[~going]
        # The point that arrived counts, even if an earlier one had the lower objective.
        best[arrived], losses[arrived] = points[~going], slope.losses[~going]
        if step == schedule.steps or not bool(going.any()):
            break
        if not bool(going.all()):
            points, active = points[going], active[going]
            adam.keep(going)
        gradients = slope.gradients[going]
        if project is not None:
            gradients = project(gradients, active)
        move = adam.step(gradients)
        # Adam scales every element by itself, which turns a step out of the space that its gradient lies in.
        points = points + (move if project is None else project(move, active))
        if bounds is not None:
            points = points.clamp(*bounds)
        taken[active] += 1
        bar.update()
    bar.close()
    return Descent(best, losses, taken)
