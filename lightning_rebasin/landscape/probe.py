"""Evaluating *other* weights of a module while the module itself is left alone.

The idea: a *probe* is a deep copy of the module.  The weights of one :class:`Point` after the other are written into
the probe, and each batch is evaluated at every point before the next batch is fetched ("batches outside, points
inside": the data are loaded, decoded and moved once, whatever the number of points).

What an evaluation is, a subclass says: a function here, a LightningModule's own ``validation_step`` in
``lightning_probe.py``.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_rebasin.landscape.accumulate import Average, Reduction
from lightning_rebasin.landscape.batches import (
    batch_size,
    clone_batch,
    on_device,
)
from lightning_rebasin.landscape.copies import copy_module, isolated_rng
from lightning_rebasin.landscape.first_layer import FirstLayer
from lightning_rebasin.landscape.points import Point
from lightning_rebasin.landscape.weights import weights_of
from lightning_rebasin.merging.statistics import (
    averaging,
    batch_norms,
    statistics_of,
)

#: A loss of a plain module on one batch: a mean over the batch, or several of them by name.
LossFunction = Callable[[nn.Module, Any], Tensor | Mapping[str, Tensor]]
Context = Callable[[], AbstractContextManager[Any]]
#: The state of every average of one point in one process.
_States = dict[str, tuple[Reduction, float, float]]


class Place(NamedTuple):
    """Which batch of which loader is being evaluated."""

    batch_idx: int = 0
    dataloader_idx: int = 0
    loaders: int = 1

    def key(self, name: str) -> str:
        """The name under which Lightning keeps a metric of this loader."""
        if self.loaders == 1:
            return name
        return f"{name}/dataloader_idx_{self.dataloader_idx}"


class Probe(abc.ABC):
    """A copy of a module into which weights are written, and what its evaluation said at each point.

    Args:
        module: The module; it is copied and not changed.
        points: Number of points that will be told apart.

    Raises:
        ConfigurationError: The module cannot be copied or evaluated.
    """

    def __init__(self, module: nn.Module, points: int) -> None:
        self.module = copy_module(module)
        self.samples = 0
        self._averages: list[dict[str, Average]] = [{} for _ in range(points)]
        self._targets = weights_of(self.module)
        self._statistics: dict[int, dict[str, Tensor]] = {}
        self._first_layer = FirstLayer(self.module)

    @abc.abstractmethod
    def step(self, point: int, batch: Any, place: Place) -> None:
        """Evaluate one batch with the weights that are loaded, and remember the result under ``point``."""

    def give_statistics(
        self, number: int, statistics: Mapping[str, Tensor]
    ) -> None:
        """Set the batch-norm statistics of a point that were re-estimated elsewhere.

        Args:
            number: Which of the points.
            statistics: Buffers by name.
        """
        self._statistics[number] = dict(statistics)

    def load(self, point: Point, number: int | None = None) -> None:
        """Write the weights of a point into the probe, with its batch-norm statistics if they were re-estimated.

        Args:
            point: Where to evaluate.
            number: Which of the points it is.
        """
        point.write(self._targets)
        if number in self._statistics:
            for name, tensor in self._statistics[number].items():
                self._targets[name].copy_(tensor)

    def evaluate(
        self,
        points: Sequence[Point],
        batch: Any,
        place: Place,
        *,
        context: Context = nullcontext,
    ) -> None:
        """Evaluate one batch at every point.

        Args:
            points: Where to evaluate; their numbers tell the results apart.
            batch: On the module's device; it is cloned for each point, since a step may change it in place.
            place: Which batch of which loader this is.
            context: Makes the context of one evaluation.
        """
        # Anchors first: what the first layer gives there serves the points between them.
        order = sorted(
            range(len(points)), key=lambda i: points[i].anchor is None
        )
        for number in order:
            self.load(points[number], number)
            self._first_layer.start(points[number])
            # Autocast caches half-precision copies of the weights until its context ends; with one context for all
            # points the weights of the first would be evaluated again and again.  A step that draws random numbers
            # must neither move the global generators nor see other numbers at other points.
            with isolated_rng(), context():
                self.step(number, clone_batch(batch), place)
        self._first_layer.stop()

    def estimate_statistics(
        self,
        points: Sequence[Point],
        batches: Sequence[Any],
        *,
        context: Context = nullcontext,
    ) -> None:
        """Re-estimate the batch-norm statistics at every point as cumulative averages, in the probe only.

        Args:
            points: Where to evaluate; their numbers tell the results apart.
            batches: Training batches on the module's device, evaluated like validation batches.
            context: Makes the context of one evaluation.
        """
        kept = self._averages
        norms = batch_norms(self.module)
        for number, point in enumerate(points if norms else ()):
            self._averages = [{} for _ in kept]
            self.load(point)
            with averaging(norms.values()):
                for index, batch in enumerate(batches):
                    with isolated_rng(), context():
                        self.step(number, clone_batch(batch), Place(index))
            self._statistics[number] = statistics_of(norms)
        self._averages = kept
        self.reset_metrics()

    def synchronise_statistics(
        self, reduce: Callable[[Tensor], Tensor]
    ) -> None:
        """Average the re-estimated statistics over processes; ``reduce`` is collective."""
        for statistics in self._statistics.values():
            for name, tensor in statistics.items():
                if tensor.is_floating_point():
                    statistics[name] = reduce(tensor)

    def reset_metrics(self) -> None:  # noqa: B027  (most probes have no metrics)
        """Forget the state of metrics, if the probe has any."""

    def results(
        self, gather: Callable[[object], list[Any]] | None = None
    ) -> list[dict[str, float]]:
        """The reduced metrics of every point.

        Args:
            gather: Collects one object from every process; called once, so all processes must call this method.
        """
        own: list[_States] = []
        for averages in self._averages:
            own.append({name: a.state() for name, a in averages.items()})
        everyone: list[list[_States]] = (
            [own] if gather is None else gather(own)
        )
        rows = []
        for point in range(len(own)):
            joined = _joined([states[point] for states in everyone])
            rows.append({name: a.value for name, a in joined.items()})
            weights = [0.0]
            for average in joined.values():
                if average.reduction == "mean":
                    weights.append(average.weight)
            self.samples = int(max(weights))
        return rows

    def higher_is_better(self) -> dict[str, bool]:
        """Metrics that say themselves which way is better."""
        return {}

    def transfer(self, batch: Any, dataloader_idx: int) -> Any:  # noqa: ARG002  (LightningProbe needs it)
        """Move a batch of a data loader to the device of the module."""
        return on_device(batch, self.device)

    @property
    def device(self) -> torch.device:
        """Where the module is."""
        return next(
            (tensor.device for tensor in self._targets.values()),
            torch.device("cpu"),
        )


class FunctionProbe(Probe):
    """Evaluates any module with a function ``loss(module, batch)`` that returns means over the batch."""

    def __init__(
        self, module: nn.Module, points: int, loss: LossFunction
    ) -> None:
        super().__init__(module, points)
        self._loss = loss

    def step(self, point: int, batch: Any, place: Place) -> None:
        """Evaluate one batch."""
        output = self._loss(self.module, batch)
        values = output if isinstance(output, Mapping) else {"loss": output}
        for name, value in values.items():
            key = place.key(name)
            self._averages[point].setdefault(key, Average("mean")).update(
                value, batch_size(batch)
            )


def _joined(processes: Sequence[_States]) -> dict[str, Average]:
    """The averages of one point over all processes, which may have logged different metrics."""
    names = dict.fromkeys(name for states in processes for name in states)
    found = {}
    for name in names:
        own = [states[name] for states in processes if name in states]
        found[name] = Average.merge(own)
    return found
