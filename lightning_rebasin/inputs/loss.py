"""The loss of a fixed network at points of input space, one number a point.

The points of many pairs go through the network together, at most ``chunk_size`` at a time, and are made when their
chunk comes: memory is bounded by the chunk, not by pairs times points.  Every point has an *owner*, the number of the
pair that it belongs to, which says what its target is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, final

import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from lightning_rebasin.errors import ConfigurationError, DataError
from lightning_rebasin.inputs.network import InputNetwork

#: Loss of outputs for targets: one number a sample.
OutputLoss = Callable[[Any, Any], Tensor]
#: How many inputs go through the network at once, unless somebody says otherwise.
CHUNK_SIZE = 256


def cross_entropies(output: Any, target: Any) -> Tensor:
    """The cross-entropy of every sample in nats: the loss unless another one is given.

    Args:
        output: Logits of shape ``(n, classes)``, or ``(n, classes, ...)`` with a class at each place.
        target: Classes, integers of shape ``(n,)`` or ``(n, ...)``.

    Returns:
        Shape ``(n,)``: means over the places.

    Raises:
        ConfigurationError: The outputs are not logits.
        DataError: The targets are not classes of these outputs.

    Example:
        >>> cross_entropies(torch.zeros(2, 4), torch.tensor([0, 3]))
        tensor([1.3863, 1.3863])
    """
    if not isinstance(output, Tensor) or output.ndim < 2:
        raise ConfigurationError(
            "the network does not return logits of shape (samples, classes); pass loss=, a function loss(output, "
            "target) that returns one loss per sample"
        )
    if not isinstance(target, Tensor) or target.is_floating_point():
        raise DataError(
            "the cross-entropy needs target classes, integers; for other targets pass loss=, a function loss(output, "
            "target) that returns one loss per sample"
        )
    classes = output.shape[1]
    outside = (target < 0) | (target >= classes)
    if bool(outside.any()):
        raise DataError(
            f"target {int(target[outside][0])} is not a class: the network has {classes} outputs"
        )
    losses = functional.cross_entropy(output, target, reduction="none")
    return losses.reshape(len(output), -1).mean(1)


@final
class InputLoss:
    """The loss of a fixed network as a function of its input.

    Args:
        network: The network.
        target: One target per pair along the first axis, or ``None`` for a loss without targets.
        loss: ``loss(output, target)``, one number per sample.
        tokens: With an embedding, the tokens that carry the points of each pair.
        chunk_size: How many inputs go through the network at once.

    Example:
        >>> loss = InputLoss(InputNetwork(torch.nn.Identity()), torch.tensor([1]))
        >>> loss.values(torch.zeros(1, 4), torch.tensor([0]))
        tensor([1.3863])
    """

    def __init__(
        self,
        network: InputNetwork,
        target: Tensor | None,
        loss: OutputLoss | None = None,
        *,
        tokens: Tensor | None = None,
        chunk_size: int = CHUNK_SIZE,
    ) -> None:
        self._network = network
        self._target = target
        self._loss = loss or cross_entropies
        self._tokens = tokens
        self._chunk_size = chunk_size

    def values(self, points: Tensor, owners: Tensor) -> Tensor:
        """The loss at points.

        Args:
            points: Shape ``(n, *input)``.
            owners: The pair of each point, shape ``(n,)``.

        Returns:
            Shape ``(n,)``.
        """
        found = []
        with torch.no_grad():
            for chunk in self._chunks(len(points)):
                found.append(self._at(points[chunk], owners[chunk]))
        return torch.cat(found)

    def along(
        self,
        starts: Tensor,
        ends: Tensor,
        lambdas: Sequence[float],
        owners: Tensor,
        *,
        progress: bool = False,
    ) -> Tensor:
        """The loss on segments, ``(1 − λ)·start + λ·end``.

        Args:
            starts: Shape ``(segments, *input)``.
            ends: The same shape.
            lambdas: Points λ of every segment.
            owners: The pair of each segment.
            progress: Show a progress bar over the chunks.

        Returns:
            Shape ``(segments, λ)``.
        """
        grid = torch.tensor(lambdas, dtype=starts.dtype, device=starts.device)
        found = []
        with torch.no_grad():
            for chunk in tqdm(
                self._chunks(len(starts) * len(grid)),
                desc="inputs",
                disable=not progress,
                leave=False,
            ):
                # Of 2 segments with 3 points each, numbers 0 … 5 are (0, λ0), (0, λ1), (0, λ2), (1, λ0), …
                numbers = torch.arange(chunk.start, chunk.stop)
                which = numbers // len(grid)
                lam = grid[numbers % len(grid)]
                points = between(starts[which], ends[which], lam)
                found.append(self._at(points, owners[which]))
        return torch.cat(found).reshape(len(starts), len(grid))

    def gradients(
        self, points: Tensor, owners: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The loss at points, and its gradient with respect to them.

        Args:
            points: Shape ``(n, *input)``.
            owners: The pair of each point.

        Returns:
            Losses of shape ``(n,)`` and gradients of the shape of ``points``.

        Raises:
            ConfigurationError: The loss is not a differentiable function of the input.
        """
        losses, gradients = [], []
        for chunk in self._chunks(len(points)):
            moved = points[chunk].detach().requires_grad_()
            with torch.enable_grad():
                value = self._at(moved, owners[chunk])
            if not value.requires_grad:
                raise ConfigurationError(
                    "the loss is not a differentiable function of the input (argmax, detach, numbers taken out of "
                    "tensors, no_grad); a path can be measured along it, but not optimised"
                )
            # Samples do not see each other in eval mode, so the gradient of the sum holds the gradient of each.
            (gradient,) = torch.autograd.grad(value.sum(), moved)
            losses.append(value.detach())
            gradients.append(gradient)
        return torch.cat(losses), torch.cat(gradients)

    def check_slope(self, points: Tensor, owners: Tensor) -> None:
        """Raise if there is no way down from any of these points.

        Raises:
            ConfigurationError: The gradient is zero at all of them, or there is none.
        """
        _, gradients = self.gradients(points, owners)
        if not bool((gradients != 0).any()):
            raise ConfigurationError(
                "the gradient of the loss with respect to the input is zero everywhere, so nothing can be optimised: "
                "is the loss piecewise constant (accuracy, rounding), or the network dead?"
            )

    def _chunks(self, count: int) -> list[slice]:
        """Slices of so many points, none longer than a chunk."""
        size = self._chunk_size
        starts = range(0, count, size)
        return [slice(start, min(start + size, count)) for start in starts]

    def _at(self, points: Tensor, owners: Tensor) -> Tensor:
        """The loss of one chunk."""
        tokens = None if self._tokens is None else self._tokens[owners]
        target = None if self._target is None else self._target[owners]
        losses = self._loss(self._network(points, tokens), target)
        if not isinstance(losses, Tensor) or losses.shape != (len(points),):
            shape = (
                tuple(losses.shape) if isinstance(losses, Tensor) else losses
            )
            raise ConfigurationError(
                f"the loss must return one number per sample, shape ({len(points)},), and returned {shape!r}: use "
                "reduction='none', and average over everything but the first axis"
            )
        return losses


def between(starts: Tensor, ends: Tensor, lam: Tensor) -> Tensor:
    """``(1 − λ)·start + λ·end`` for one λ a row, exact at both ends.

    Example:
        >>> between(torch.zeros(2, 1), torch.ones(2, 1), torch.tensor([0.25, 1.0]))
        tensor([[0.2500],
                [1.0000]])
    """
    lam = lam.reshape(-1, *[1] * (starts.ndim - 1))
    return (1 - lam) * starts + lam * ends
