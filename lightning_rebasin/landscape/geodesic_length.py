"""``geodesic_length``: how far the outputs of a network travel along a path of its weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import Any

from torch import Tensor, nn

from lightning_rebasin.landscape.accumulate import Average
from lightning_rebasin.landscape.barrier import lambda_grid
from lightning_rebasin.landscape.batches import batch_size
from lightning_rebasin.landscape.divergence import (
    OutputFunction,
    forward,
    jensen_shannon,
    log_probabilities,
)
from lightning_rebasin.landscape.geodesic_values import GeodesicLength
from lightning_rebasin.landscape.lengths import corners
from lightning_rebasin.landscape.measure import Loaders, run_probe
from lightning_rebasin.landscape.path_curve import as_path
from lightning_rebasin.landscape.points import Point, State, WeightPath
from lightning_rebasin.landscape.probe import Context, Place, Probe


def geodesic_length(
    module: nn.Module,
    path: WeightPath | Sequence[State],
    dataloader: Loaders,
    points: int | Sequence[float] = 25,
    *,
    output: OutputFunction = forward,
    batch_norm: Iterable[Any] | None = None,
    limit_batches: int | None = None,
    progress: bool = False,
) -> GeodesicLength:
    """Measure how far the outputs of a classifier travel along a path.

    Args:
        module: Any module whose output is logits.
        path: Anything with ``at(t)``, or sets of weights, which are joined by straight pieces.
        dataloader: Batches; labels are not looked at.
        points: Number of evenly spaced t, or the t themselves; 0, ½, 1 and the corners of a chain are always added.
        output: ``output(module, batch)`` returning logits, classes along the second axis; the module's own output on
            the first item of a batch if omitted.
        batch_norm: Training batches on which batch-norm statistics are re-estimated at every t.
        limit_batches: Use only the first so many batches.
        progress: Show a progress bar over the batches.

    Returns:
        The divergences, their sum and the lengths.

    Raises:
        ConfigurationError: The outputs are not logits.
        StateDictError: The weights do not fit the module.
        DataError: There is no batch.

    Example:
        >>> import torch
        >>> net = nn.Linear(1, 2, bias=False)
        >>> chain = [{"weight": torch.tensor([[0.0], [w]])} for w in (0.0, 1.0, 2.0)]
        >>> round(geodesic_length(net, chain, [torch.ones(1, 1)], 3).length, 3)
        0.86
    """
    route = as_path(path)
    ts = lambda_grid(points)
    ts = lambda_grid([*ts, *corners(route)])
    probe = OutputProbe(module, len(ts), output)
    measured = run_probe(
        probe,
        [route.at(t) for t in ts],
        dataloader,
        batch_norm=batch_norm,
        limit_batches=limit_batches,
        progress=progress,
        label="geodesic",
    )
    steps = tuple(row["js"] for row in measured.rows[:-1])
    return GeodesicLength(ts, steps, measured.rows[-1]["js"], measured.samples)


class OutputProbe(Probe):
    """Compares the outputs of consecutive points; the last row compares the last point with the first.

    Args:
        module: As for every probe.
        points: Number of points.
        output: ``output(module, batch)`` returning logits.
    """

    def __init__(
        self, module: nn.Module, points: int, output: OutputFunction
    ) -> None:
        super().__init__(module, points)
        self._output = output
        self._outputs: dict[int, Tensor] = {}

    def step(self, point: int, batch: Any, place: Place) -> None:  # noqa: ARG002  (one number for all loaders)
        """Keep the output of one point on the batch."""
        output = self._output(self.module, batch)
        self._outputs[point] = log_probabilities(output)

    def evaluate(
        self,
        points: Sequence[Point],
        batch: Any,
        place: Place,
        *,
        context: Context = nullcontext,
    ) -> None:
        """Evaluate one batch at every point, then compare what came out."""
        super().evaluate(points, batch, place, context=context)
        size = batch_size(batch)
        for number in range(len(points)):
            # After the last one comes the first: the way straight from end to end.
            following = (number + 1) % len(points)
            js = jensen_shannon(
                self._outputs[number], self._outputs[following]
            )
            average = self._averages[number].setdefault("js", Average("mean"))
            # Equal outputs differ by rounding, which may be negative.
            average.update(js.clamp(min=0.0), size)
        self._outputs = {}
