"""Everything that the user's own ``validation_step`` logs, at several points of weight space."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, final

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn

from lightning_rebasin.landscape.lightning_probe import LightningProbe
from lightning_rebasin.landscape.measure import Measured
from lightning_rebasin.landscape.points import Point
from lightning_rebasin.landscape.probe import LossFunction, Place
from lightning_rebasin.modules.inner import InnerModel


class MeanAndWorst(NamedTuple):
    """One metric over several points."""

    mean: float
    worst: float


@final
class PathMetrics:
    """The logged metrics of every point, batch by batch.

    Args:
        model: The network with its ``validation_step``; it is copied.
        points: Where.
        statistics: Re-estimated batch-norm statistics of each point; empty where its own are right.
    """

    def __init__(
        self,
        model: LightningModule,
        points: Sequence[Point],
        statistics: Sequence[Mapping[str, Tensor]],
    ) -> None:
        self._points = points
        self._probe = LightningProbe(model, len(points))
        for number, own in enumerate(statistics):
            if own:
                self._probe.give_statistics(number, own)

    def update(self, batch: Any, place: Place) -> None:
        """Evaluate one batch at every point; training sees none of its random numbers."""
        self._probe.evaluate(self._points, batch, place)

    def finish(
        self, gather: Callable[[object], list[Any]] | None
    ) -> dict[str, MeanAndWorst]:
        """Mean and worst value of every metric.

        Args:
            gather: Collects one object from every process; ``None`` for a single process.
        """
        rows = self._probe.results(gather)
        found = Measured(rows, self._probe.higher_is_better(), 0)
        better = found.better()
        return {
            name: summary(column, higher_is_better=better[name])
            for name, column in found.columns().items()
        }


def summary(
    values: Sequence[float], *, higher_is_better: bool
) -> MeanAndWorst:
    """Mean and worst of some values; NaN if one of them is.

    Example:
        >>> summary([0.5, 1.0], higher_is_better=True)
        MeanAndWorst(mean=0.75, worst=0.5)
    """
    mean = sum(values) / len(values)
    if math.isnan(mean):
        return MeanAndWorst(mean, mean)
    worst = min(values) if higher_is_better else max(values)
    return MeanAndWorst(mean, worst)


def own_validation(model: nn.Module) -> LightningModule | None:
    """The network if it has a ``validation_step`` of its own."""
    if isinstance(model, LightningModule) and is_overridden(
        "validation_step", model
    ):
        return model
    return None


def measured_by(inner: InnerModel) -> tuple[nn.Module, LossFunction | None]:
    """What a report measures: the network by its ``validation_step``, or else the training loss, as ``"loss"``.

    Args:
        inner: The network as the path holds it.

    Returns:
        A module whose weights have the names of the user's network, and the loss to measure it by.
    """
    own = own_validation(inner.model)
    if own is not None:
        return own, None
    return inner.model, inner.loss_of
