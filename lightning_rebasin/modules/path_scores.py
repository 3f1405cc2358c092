"""Held-out losses at several points of weight space, batch by batch.

"Batches outside, points inside": a batch is loaded once, and the weights of one point after the other are made for it,
so that one set of weights is in memory at a time, whatever the number of points.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor

from lightning_rebasin.landscape.accumulate import Average
from lightning_rebasin.landscape.batches import batch_size, clone_batch
from lightning_rebasin.landscape.copies import isolated_rng
from lightning_rebasin.landscape.points import Point
from lightning_rebasin.modules.candidates import estimate_statistics
from lightning_rebasin.modules.inner import InnerModel


def weights_at(point: Point, names: Sequence[str]) -> dict[str, Tensor]:
    """The named tensors of a point, without a graph.

    Args:
        point: Where.
        names: What a functional call needs: tied tensors once.
    """
    first = point.anchors[0]
    new = {name: torch.empty_like(first[name]).detach() for name in names}
    point.write(new)
    return new


def statistics_at(
    inner: InnerModel,
    point: Point,
    names: Sequence[str],
    batches: Iterable[Any],
) -> dict[str, Tensor]:
    """Batch-norm statistics of a point.

    Args:
        inner: The network; left in the mode it was in.
        point: Where.
        names: Tensors that the network takes.
        batches: Training batches on the network's device.

    Returns:
        The buffers by name; empty without batch norm or without batches.
    """
    training = inner.training
    inner.eval()
    with torch.inference_mode(mode=False), torch.no_grad():
        found = estimate_statistics(inner, weights_at(point, names), batches)
    inner.train(training)
    return found


@final
class PathScores:
    """The mean loss of every point.

    Args:
        inner: Computes the losses, in eval mode.
        points: Where.
        statistics: Re-estimated batch-norm statistics of each point; empty where its own are right.
        names: Tensors that the network takes.
    """

    def __init__(
        self,
        inner: InnerModel,
        points: Sequence[Point],
        statistics: Sequence[Mapping[str, Tensor]],
        names: Sequence[str],
    ) -> None:
        self._inner = inner
        self._points = points
        self._statistics = statistics
        self._names = names
        self._losses = [Average("mean") for _ in points]

    def update(self, batch: Any, batch_idx: int) -> None:
        """Add one batch; every point sees the same random numbers, and training sees none of them."""
        size = batch_size(batch)
        for point, statistics, average in zip(
            self._points, self._statistics, self._losses, strict=True
        ):
            weights = weights_at(point, self._names) | dict(statistics)
            with isolated_rng():
                loss = self._inner.loss_at(
                    weights, clone_batch(batch), batch_idx
                )
            average.update(loss, size)

    def finish(self, total: Callable[[Tensor], Tensor]) -> list[float]:
        """The means.

        Args:
            total: Sums a tensor over all processes; called once.
        """
        rows = [[float(a.total), a.weight] for a in self._losses]
        sums = total(torch.tensor(rows, dtype=torch.float64))
        return [float(loss / weight) for loss, weight in sums]
