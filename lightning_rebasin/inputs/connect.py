"""``connect_inputs``: paths of low loss between inputs.

Every pair starts with its segment.  Wherever a piece of its path rises above the threshold, the highest point of that
piece is moved sideways (``bypass.py``) and becomes a corner: one piece becomes two.  That is repeated until the path
stays below the threshold, has as many pieces as it may have, or a corner did not get below.

The pieces of all pairs are measured and moved together, so that a hundred pairs cost little more steps than one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from lightning_rebasin.errors import DataError
from lightning_rebasin.inputs.bypass import Penalty, Segments, bypass
from lightning_rebasin.inputs.descent import Schedule
from lightning_rebasin.inputs.loss import CHUNK_SIZE, OutputLoss
from lightning_rebasin.inputs.network import alone
from lightning_rebasin.inputs.pairs import (
    Bounds,
    InputPairs,
    check_counts,
    check_inside,
    check_numbers,
    limits_of,
    make_pairs,
)
from lightning_rebasin.inputs.paths import InputPath, InputPaths, corner_marks
from lightning_rebasin.landscape.barrier import lambda_grid

#: A corner stops moving where its loss is this part of the threshold: its neighbours must be below, too.
_GOAL = 0.1


def connect_inputs(
    module: nn.Module,
    x_a: Tensor,
    x_b: Tensor,
    target: Any,
    *,
    loss: OutputLoss | None = None,
    threshold: float = 0.5,
    points: int = 51,
    max_pieces: int = 8,
    steps: int = 1024,
    learning_rate: float = 0.005,
    proximity: float = 0.1,
    variation: float = 1e-8,
    bounds: Bounds | None = None,
    embedding: str | None = None,
    chunk_size: int = CHUNK_SIZE,
    seed: int = 0,
    progress: bool = False,
) -> InputPaths:
    """Find a path of low loss between the inputs of every pair, through the input space of a fixed network.

    The point B of highest loss on the segment is replaced by a minimum B' of ``L(B') + proximity·mean (B' − B)² +
    variation·TV(B' − B)`` in the hyperplane through B orthogonal to the segment, found by Adam; the path goes straight
    from a to B' to b.  Pieces that are still too high get a corner of their own in the same way.

    The module is run as a copy in eval mode: its parameters, buffers, gradients and modes and the random generators
    stay as they are to the bit.  All pairs are moved together, with the numbers that each has alone, up to rounding.

    Args:
        module: A network whose ``forward`` takes a batch of inputs.
        x_a: First ends, floats of shape ``(pairs, *input)``; with ``embedding`` tokens.
        x_b: Second ends, of the same shape.
        target: What the loss compares outputs with: one per pair, one number for all pairs, or ``None``.
        loss: ``loss(output, target)``, differentiable, one number per sample; the cross-entropy in nats if omitted.
        threshold: The loss that a path shall not exceed.
        points: How many λ are measured on every straight piece, evenly spaced, with both ends and the middle.
        max_pieces: How many straight pieces a path may have.
        steps: Steps of Adam per corner at most; a corner stops at a tenth of the threshold.
        learning_rate: Step size of Adam, in units of the input.
        proximity: Weight of the mean squared distance of a corner from the segment.
        variation: Weight of the total variation of that displacement, for images.
        bounds: Lowest and highest value of an input: numbers, or tensors that broadcast over one input.
        embedding: Name of the submodule that embeds tokens; the path then runs among embeddings.
        chunk_size: How many inputs go through the network at once; bounds the memory.
        seed: Seeds the direction in which a corner leaves its segment.
        progress: Show progress bars.

    Returns:
        One path per pair; ``connected()`` says which of them stay below the threshold.

    Raises:
        DataError: Inputs or targets do not fit each other or the network, or the loss is above the threshold at an end
            already (it may belong to another class), so that no path can be below.
        NonFiniteError: An input holds NaN or infinity.
        ConfigurationError: The loss is not differentiable or not one per sample, or an option cannot work.

    Example:
        >>> class Hill(nn.Module):
        ...     def forward(self, x):
        ...         return (-x.square().sum(1)).exp()
        >>> ends = torch.tensor([[-3.0, 0.1]]), torch.tensor([[3.0, 0.1]])
        >>> options = {"proximity": 0.0, "learning_rate": 0.05}
        >>> found = connect_inputs(Hill(), *ends, None, loss=lambda output, _: output, **options)
        >>> found[0].pieces, found.connected()
        (2, (True,))

    References:
        Vrabel, Shem-Ur, Oz, Krueger, "Input Space Mode Connectivity in Deep Neural Networks", ICLR 2025.
    """
    check_numbers(
        proximity=proximity, variation=variation, threshold=threshold
    )
    check_counts(
        learning_rate,
        points=(points, 3),
        max_pieces=(max_pieces, 1),
        steps=(steps, 1),
    )
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
        limits = limits_of(bounds, pairs.a)
        check_inside(limits, x_a=pairs.a, x_b=pairs.b)
        _check_ends(pairs, threshold)
        search = _Search(
            pairs,
            lambda_grid(points),
            Schedule(steps, learning_rate, _GOAL * threshold),
            Penalty(proximity, variation),
            threshold,
            max_pieces,
            limits,
        )
        search.run(seed, progress=progress)
        return InputPaths(tuple(search.paths()), threshold)


@dataclass(frozen=True)
class _Piece:
    """A piece that is too high: piece number ``piece`` of pair ``pair``, highest at λ number ``peak``."""

    pair: int
    piece: int
    peak: int


@final
class _Search:
    """The paths of all pairs while they are found."""

    def __init__(  # noqa: PLR0917
        self,
        pairs: InputPairs,
        lambdas: tuple[float, ...],
        schedule: Schedule,
        penalty: Penalty,
        threshold: float,
        max_pieces: int,
        bounds: tuple[Tensor, Tensor] | None,
    ) -> None:
        self._loss = pairs.loss
        self._lambdas = lambdas
        self._schedule = schedule
        self._penalty = penalty
        self._threshold = threshold
        self._max_pieces = max_pieces
        self._bounds = bounds
        self._device = pairs.a.device
        # Of every pair the corners, and the losses on the piece after each corner but the last.
        self._corners = [[a, b] for a, b in zip(pairs.a, pairs.b, strict=True)]
        self._rows: list[list[list[float]]] = [[[]] for _ in self._corners]
        self._stuck: set[int] = set()

    def run(self, seed: int, *, progress: bool) -> None:
        """Bend the paths until nothing more can be done."""
        self._measure([(pair, 0) for pair in range(len(self._corners))])
        # Every round puts at least one more corner into each path that goes on.
        for number in range(self._max_pieces):
            high = self._too_high()
            if not high:
                return
            self._bend(high, seed + number, progress=progress)

    def paths(self) -> list[InputPath]:
        """The paths as they are now, in main memory."""
        found = []
        for corners, rows in zip(self._corners, self._rows, strict=True):
            stacked = torch.stack(corners).cpu()
            marks = corner_marks(stacked)
            lambdas, losses = [0.0], [rows[0][0]]
            for piece, row in enumerate(rows):
                start, width = marks[piece], marks[piece + 1] - marks[piece]
                for lam, value in zip(self._lambdas[1:], row[1:], strict=True):
                    place = min(start + lam * width, 1.0)
                    if lam == 1.0:
                        place = marks[piece + 1]
                    # Two corners at one place would make two λ of it.
                    if place > lambdas[-1]:
                        lambdas.append(place)
                        losses.append(value)
            found.append(InputPath(stacked, tuple(lambdas), tuple(losses)))
        return found

    def _too_high(self) -> list[_Piece]:
        """Pieces above the threshold, as many of each pair as it may still have, the highest first."""
        found = []
        for pair, rows in enumerate(self._rows):
            if pair in self._stuck:
                continue
            high = [k for k, r in enumerate(rows) if max(r) > self._threshold]
            high.sort(key=lambda k: -max(rows[k]))
            for piece in high[: self._max_pieces - len(rows)]:
                inner = rows[piece][1:-1]
                peak = 1 + inner.index(max(inner))
                found.append(_Piece(pair, piece, peak))
        return found

    def _bend(
        self, high: Sequence[_Piece], seed: int, *, progress: bool
    ) -> None:
        """Give each of these pieces a corner, and measure what it becomes."""
        segments = self._segments(high)
        moved = bypass(
            self._loss,
            segments,
            self._schedule,
            self._penalty,
            bounds=self._bounds,
            seed=seed,
            progress=progress,
        )
        new: list[tuple[int, int]] = []
        order = sorted(range(len(high)), key=lambda i: -high[i].piece)
        # From the last piece of a path to the first: the numbers of those before stay what they are.
        for i in order:
            pair, piece = high[i].pair, high[i].piece
            self._corners[pair].insert(piece + 1, moved.points[i])
            self._rows[pair][piece : piece + 1] = [[], []]
            if not float(moved.losses[i]) <= self._threshold:
                # A path through this corner cannot be low, however many pieces it has.
                self._stuck.add(pair)
        for pair, rows in enumerate(self._rows):
            new += [(pair, k) for k, row in enumerate(rows) if not row]
        self._measure(new)

    def _segments(self, high: Sequence[_Piece]) -> Segments:
        """The pieces as segments, with their highest points."""
        peaks = [self._lambdas[each.peak] for each in high]
        places = [(each.pair, each.piece) for each in high]
        starts, ends, owners = self._stacked(places)
        at = torch.tensor(peaks, dtype=starts.dtype, device=self._device)
        return Segments(starts, ends, at, owners)

    def _measure(self, places: Sequence[tuple[int, int]]) -> None:
        """The loss along pieces, given as (pair, piece)."""
        starts, ends, owners = self._stacked(places)
        rows = self._loss.along(starts, ends, self._lambdas, owners).tolist()
        for (pair, piece), row in zip(places, rows, strict=True):
            self._rows[pair][piece] = row

    def _stacked(
        self, places: Sequence[tuple[int, int]]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Starts, ends and owners of pieces."""
        starts = [self._corners[pair][piece] for pair, piece in places]
        ends = [self._corners[pair][piece + 1] for pair, piece in places]
        owners = torch.tensor([p for p, _ in places], device=self._device)
        return torch.stack(starts), torch.stack(ends), owners


def _check_ends(pairs: InputPairs, threshold: float) -> None:
    """Raise if an end is above the threshold, or its loss is NaN."""
    for name, inputs in (("x_a", pairs.a), ("x_b", pairs.b)):
        losses = pairs.loss.values(inputs, pairs.owners)
        wrong = (~(losses <= threshold)).nonzero().flatten().tolist()
        if not wrong:
            continue
        first = wrong[0]
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise DataError(
            f"the loss at {name} of pair {first}{more} is {float(losses[first]):.4g}, above threshold={threshold:g} "
            "already, so no path can stay below: does the network put it into another class than its target? Leave "
            "such pairs out, or raise the threshold"
        )
