"""One validation of a path: the loss and the metrics of its points, and the names that they are logged under."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

from torch import Tensor

from lightning_rebasin.landscape.points import Point
from lightning_rebasin.landscape.probe import Place
from lightning_rebasin.modules.inner import InnerModel
from lightning_rebasin.modules.path_metrics import (
    PathMetrics,
    own_validation,
)
from lightning_rebasin.modules.path_scores import PathScores


@final
class PathValidation:
    """The training loss in eval mode at every point, and whatever the network's own ``validation_step`` logs there.

    Args:
        inner: The network.
        labelled: Points with labels; of several with one label the worst is logged.
        statistics: Re-estimated batch-norm statistics of each point; empty where its own are right.
        names: Tensors that the network takes.
    """

    def __init__(
        self,
        inner: InnerModel,
        labelled: Sequence[tuple[str, Point]],
        statistics: Sequence[Mapping[str, Tensor]],
        names: Sequence[str],
    ) -> None:
        self._labels = [label for label, _ in labelled]
        points = [point for _, point in labelled]
        self._scores = PathScores(inner, points, statistics, names)
        network = own_validation(inner.model)
        self._metrics = (
            PathMetrics(network, points, statistics)
            if network is not None
            else None
        )

    def update(self, batch: Any, place: Place) -> None:
        """Add one held-out batch."""
        self._scores.update(batch, place.batch_idx)
        if self._metrics is not None:
            self._metrics.update(batch, place)

    def finish(
        self,
        total: Callable[[Tensor], Tensor],
        gather: Callable[[object], list[Any]] | None,
    ) -> dict[str, float]:
        """What is logged, by the end of its name: the same on every process.

        Args:
            total: Sums a tensor over all processes.
            gather: Collects one object from every process; ``None`` for a single process.
        """
        losses = self._scores.finish(total)
        found = {
            "_loss": sum(losses) / len(losses),
            "_max": max(losses),
        }
        for label, loss in zip(self._labels, losses, strict=True):
            name = f"/{label}"
            found[name] = max(found.get(name, loss), loss)
        if self._metrics is not None:
            for name, values in self._metrics.finish(gather).items():
                found[f"/{name}/mean"] = values.mean
                found[f"/{name}/worst"] = values.worst
        return found
