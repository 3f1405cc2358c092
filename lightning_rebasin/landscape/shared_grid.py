"""A barrier whose points several processes share: each evaluates every so many λ on all the data.

Points do not depend on one another, so that the numbers are those of one process up to rounding (points are evaluated
several at a time).  During a training the processes have different samples and share those instead, as
:class:`~lightning_rebasin.LossBarrier` says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from lightning_rebasin.landscape.barrier import BarrierCurve, lambda_grid
from lightning_rebasin.landscape.measure import (
    Loaders,
    Measured,
    curve_from_rows,
    evaluate_points,
)
from lightning_rebasin.landscape.paths.line import Line
from lightning_rebasin.landscape.probe import LossFunction
from lightning_rebasin.landscape.weights import (
    check_ends,
    without_compilation_prefix,
)

#: What every process has, from one object of each, in the order of the ranks; collective.
Gather = Callable[[Any], Sequence[Any]]


class Share(NamedTuple):
    """Which process this is.

    Args:
        rank: Its number, from 0.
        size: How many there are.
        gather: Gives every process what all of them have.
    """

    rank: int
    size: int
    gather: Gather


def measure_shared_barrier(
    module: nn.Module,
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    dataloader: Loaders,
    *,
    share: Share,
    points: int | Sequence[float] = 25,
    loss: LossFunction | None = None,
    batch_norm: Iterable[Any] | None = None,
    limit_batches: int | None = None,
    progress: bool = False,
) -> BarrierCurve:
    """The curve of :func:`~lightning_rebasin.measure_barrier`, on every process; collective.

    Args:
        module: As for ``measure_barrier``; the same on every process.
        a: Weights at λ = 0.
        b: Weights at λ = 1.
        dataloader: All batches, in the same order on every process.
        share: Which process this is.
        points: Number of evenly spaced λ, or the λ themselves.
        loss: As for ``measure_barrier``.
        batch_norm: Training batches on which batch-norm statistics are re-estimated at every λ.
        limit_batches: Use only the first so many batches of each loader.
        progress: Show a progress bar over the batches.

    Example:
        >>> import torch
        >>> module = nn.Linear(1, 1, bias=False)
        >>> a, b = {"weight": torch.tensor([[1.0]])}, {"weight": torch.tensor([[-1.0]])}
        >>> alone = Share(0, 1, lambda own: [own])
        >>> curve = measure_shared_barrier(
        ...     module, a, b, [torch.ones(4, 1)], share=alone, points=3, loss=lambda m, x: m(x).square().mean()
        ... )
        >>> curve.values["loss"]
        (1.0, 0.0, 1.0)
    """
    lambdas = lambda_grid(points)
    a, b = without_compilation_prefix(a), without_compilation_prefix(b)
    check_ends(module, a, b)
    line = Line(a, b)
    # More processes than points: the others repeat the first point, so that all of them do the same.
    own = list(range(share.rank, len(lambdas), share.size)) or [0]
    measured = evaluate_points(
        module,
        [line.at(lambdas[number]) for number in own],
        dataloader,
        loss=loss,
        batch_norm=batch_norm,
        limit_batches=limit_batches,
        progress=progress,
    )
    parts = share.gather((own, measured))
    return curve_from_rows(lambdas, *_together(parts, len(lambdas)))


def _together(
    parts: Sequence[tuple[list[int], Measured]], count: int
) -> Measured:
    """The points of all processes in the order of the grid."""
    rows: list[dict[str, float]] = [{} for _ in range(count)]
    better: dict[str, bool] = {}
    for numbers, measured in parts:
        for number, row in zip(numbers, measured.rows, strict=True):
            rows[number] = row
        better |= measured.higher_is_better
    samples = parts[0][1].samples
    return Measured(rows, better, samples)
