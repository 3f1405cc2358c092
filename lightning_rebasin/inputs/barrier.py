"""``input_barrier``: the loss of a fixed network on the straight way between two inputs, and at inputs alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_rebasin.inputs.loss import CHUNK_SIZE, OutputLoss
from lightning_rebasin.inputs.network import alone
from lightning_rebasin.inputs.pairs import make_pairs
from lightning_rebasin.inputs.paths import InputPath, InputPaths
from lightning_rebasin.landscape.barrier import lambda_grid


def input_barrier(
    module: nn.Module,
    x_a: Tensor,
    x_b: Tensor,
    target: Any,
    *,
    loss: OutputLoss | None = None,
    points: int | Sequence[float] = 101,
    embedding: str | None = None,
    chunk_size: int = CHUNK_SIZE,
    progress: bool = False,
) -> InputPaths:
    """Measure the loss along the segment ``(1 − λ)·x_a + λ·x_b`` of every pair of inputs.

    The module is run as a copy in eval mode: its parameters, buffers, gradients and modes and the random generators
    stay as they are to the bit.

    Args:
        module: A network whose ``forward`` takes a batch of inputs.
        x_a: Inputs at λ = 0, floats of shape ``(pairs, *input)``; with ``embedding`` tokens.
        x_b: Inputs at λ = 1, of the same shape.
        target: What the loss compares outputs with: one per pair, one number for all pairs, or ``None``.
        loss: ``loss(output, target)`` with one number per sample; the cross-entropy in nats if omitted.
        points: Number of evenly spaced λ, or the λ themselves; 0, ½ and 1 are always added.
        embedding: Name of the submodule that embeds tokens; the segment then joins the embeddings of both ends, carried
            by the tokens of ``x_a``.
        chunk_size: How many inputs go through the network at once; bounds the memory.
        progress: Show a progress bar.

    Returns:
        One straight path per pair.

    Raises:
        DataError: Inputs or targets do not fit each other or the network.
        NonFiniteError: An input holds NaN or infinity.
        ConfigurationError: The loss is not one per sample, or an option cannot work.

    Example:
        >>> class Ridge(nn.Module):
        ...     def forward(self, x):
        ...         return 1 - x.square().sum(1)
        >>> ends = torch.tensor([[-1.0, 0.0]]), torch.tensor([[1.0, 0.0]])
        >>> paths = input_barrier(Ridge(), *ends, None, loss=lambda output, _: output, points=5)
        >>> paths[0].losses, paths.heights()
        ((0.0, 0.75, 1.0, 0.75, 0.0), (1.0,))

    References:
        Vrabel, Shem-Ur, Oz, Krueger, "Input Space Mode Connectivity in Deep Neural Networks", ICLR 2025.
    """
    lambdas = lambda_grid(points)
    with alone():
        pairs = make_pairs(
            module,
            x_a,
            x_b,
            target,
            loss=loss,
            embedding=embedding,
            chunk_size=chunk_size,
        )
        rows = pairs.loss.along(
            pairs.a, pairs.b, lambdas, pairs.owners, progress=progress
        )
        corners = torch.stack([pairs.a, pairs.b], 1).cpu()
    paths = []
    for own, row in zip(corners, rows.tolist(), strict=True):
        paths.append(InputPath(own, lambdas, tuple(row)))
    return InputPaths(tuple(paths))


def input_losses(
    module: nn.Module,
    inputs: Tensor,
    target: Any,
    *,
    loss: OutputLoss | None = None,
    chunk_size: int = CHUNK_SIZE,
) -> Tensor:
    """The loss of each input by itself: which ones are sure enough to be the ends of a path.

    Args:
        module: A network whose ``forward`` takes a batch of inputs; it stays as it is to the bit.
        inputs: Floats of shape ``(n, *input)``.
        target: One target per input, one number for all, or ``None``.
        loss: ``loss(output, target)`` with one number per sample; the cross-entropy if omitted.
        chunk_size: How many inputs go through the network at once.

    Returns:
        Shape ``(n,)``.

    Raises:
        DataError: Inputs or targets do not fit each other or the network.
        ConfigurationError: The loss is not one per sample, or the chunk size cannot work.

    Example:
        >>> input_losses(nn.Flatten(), torch.zeros(2, 4), 3)
        tensor([1.3863, 1.3863])
    """
    with alone():
        pairs = make_pairs(
            module, inputs, inputs, target, loss=loss, chunk_size=chunk_size
        )
        return pairs.loss.values(pairs.a, pairs.owners).cpu()
