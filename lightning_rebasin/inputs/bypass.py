"""Round a barrier: the highest point of a segment is moved sideways until its loss is low.

With the segment from S to E, the point B of its highest loss, ``u = (E − S) / ‖E − S‖`` and d elements in an input:

    minimise  L(B') + proximity · ‖B' − B‖² / d + variation · TV(B' − B)   over  B' − B ⊥ u

by Adam.  TV is the total variation of an image, the sum of the absolute differences of neighbouring pixels.  Gradients
*and* steps are made orthogonal to u: Adam scales every element by itself, which would turn an orthogonal gradient into
a step along the segment.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_rebasin.inputs.descent import (
    Descent,
    Schedule,
    Slope,
    descend,
)
from lightning_rebasin.inputs.loss import InputLoss, between

#: How far from the segment the search starts, in parts of its length.  On top of a symmetric hill the slope is zero.
_NUDGE = 1e-3
#: Axes of a batch of images.
_IMAGES = 4


@dataclass(frozen=True, eq=False)
class Segments:
    """Segments with a point on each.

    Args:
        starts: Shape ``(n, *input)``.
        ends: The same shape.
        at: The λ of the point on each segment, shape ``(n,)``.
        owners: The pair of each segment, shape ``(n,)``.
    """

    starts: Tensor
    ends: Tensor
    at: Tensor
    owners: Tensor

    @property
    def points(self) -> Tensor:
        """The points."""
        return between(self.starts, self.ends, self.at)

    @property
    def directions(self) -> Tensor:
        """Unit vectors along the segments; zero where both ends are the same."""
        difference = self.ends - self.starts
        return difference / _norms(difference).clamp(min=1e-30)


@dataclass(frozen=True)
class Penalty:
    """What keeps a bypass near the segment, and smooth.

    Args:
        proximity: Weight of the mean squared displacement.
        variation: Weight of its total variation.
    """

    proximity: float
    variation: float

    def value_and_gradient(
        self, displacements: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The penalty of displacements of shape ``(n, *input)``: shape ``(n,)``, and its gradients.

        Example:
            >>> value, gradient = Penalty(1.0, 0.0).value_and_gradient(torch.tensor([[2.0, 0.0]]))
            >>> value, gradient
            (tensor([2.]), tensor([[2., 0.]]))
        """
        size = displacements[0].numel()
        squares = displacements.square().flatten(1).mean(1)
        value = self.proximity * squares
        gradient = (2 * self.proximity / size) * displacements
        if self.variation and displacements.ndim == _IMAGES:
            value = value + self.variation * total_variation(displacements)
            gradient = gradient + self.variation * _slope(displacements)
        return value, gradient


def bypass(
    loss: InputLoss,
    segments: Segments,
    schedule: Schedule,
    penalty: Penalty,
    *,
    bounds: tuple[Tensor, Tensor] | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Descent:
    """Move the points of segments sideways to where the loss is low.

    Args:
        loss: The loss as a function of the input.
        segments: Segments and their points.
        schedule: When to stop.
        penalty: What a displacement costs.
        bounds: Lowest and highest value of an input; where they bind, a displacement need not stay orthogonal.
        seed: Seeds the direction in which the search leaves the segment.
        progress: Show a progress bar.

    Returns:
        The moved points.

    Raises:
        ConfigurationError: The loss has no gradient with respect to the input.
    """
    origins, directions = segments.points, segments.directions

    def sideways(vectors: Tensor, numbers: Tensor) -> Tensor:
        return orthogonal(vectors, directions[numbers])

    def slope_at(points: Tensor, numbers: Tensor) -> Slope:
        losses, gradients = loss.gradients(points, segments.owners[numbers])
        extra, push = penalty.value_and_gradient(points - origins[numbers])
        return Slope(losses, losses + extra, gradients + push)

    starts = origins + _nudges(segments, seed)
    if bounds is not None:
        starts = starts.clamp(*bounds)
    loss.check_slope(starts, segments.owners)
    return descend(
        starts,
        slope_at,
        schedule,
        project=sideways,
        bounds=bounds,
        progress=progress,
        label="bypass",
    )


def orthogonal(vectors: Tensor, directions: Tensor) -> Tensor:
    """Vectors without their part along unit directions, row by row.

    Example:
        >>> orthogonal(torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 0.0]]))
        tensor([[0., 4.]])
    """
    # Twice: of a vector almost along its direction little is left, and of that rounding is a large part.
    for _ in range(2):
        along = (vectors * directions).flatten(1).sum(1)
        vectors = vectors - along.reshape(_column(vectors)) * directions
    return vectors


def total_variation(images: Tensor) -> Tensor:
    """The sum of absolute differences of neighbouring pixels, shape ``(n,)``; zero for inputs that are not images.

    Args:
        images: Shape ``(n, channels, height, width)``; anything else has no neighbours.

    Example:
        >>> total_variation(torch.tensor([[[[0.0, 1.0], [0.0, 3.0]]]]))
        tensor([6.])
    """
    if images.ndim != _IMAGES:
        return images.new_zeros(len(images))
    rows, columns = images.diff(dim=2).abs(), images.diff(dim=3).abs()
    return rows.flatten(1).sum(1) + columns.flatten(1).sum(1)


def _slope(images: Tensor) -> Tensor:
    """The gradient of the total variation."""
    slope = torch.zeros_like(images)
    # |q − p| pulls q down and p up by the sign of q − p.
    down = images.diff(dim=2).sign()
    slope[:, :, 1:] += down
    slope[:, :, :-1] -= down
    right = images.diff(dim=3).sign()
    slope[..., 1:] += right
    slope[..., :-1] -= right
    return slope


def _nudges(segments: Segments, seed: int) -> Tensor:
    """A small step off every segment.

    All start from one draw of the shape of a single input: a pair gets the same nudge alone and among others.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = segments.starts.shape[1:]
    drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
    vectors = drawn.to(segments.starts).expand_as(segments.starts)
    aside = orthogonal(vectors, segments.directions)
    lengths = _norms(segments.ends - segments.starts)
    return _NUDGE * lengths * aside / _norms(aside).clamp(min=1e-30)


def _norms(vectors: Tensor) -> Tensor:
    """Euclidean norms, of a shape that broadcasts."""
    norms: Tensor = vectors.flatten(1).norm(dim=1)
    return norms.reshape(_column(vectors))


def _column(vectors: Tensor) -> tuple[int, ...]:
    """The shape of one number a row."""
    return (len(vectors), *[1] * (vectors.ndim - 1))
