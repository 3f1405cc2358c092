"""Metrics with state, once per point.

A torchmetrics metric keeps what it has seen.  Evaluating one batch at several points with the same metric would mix
them, so every point gets its own copy, put into the module just before the module runs.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import cast

from torch import nn
from torchmetrics import Metric, MetricCollection


class MetricSlots:
    """One copy of every torchmetrics child of a module per point, so that their states do not mix.

    Args:
        module: The module that owns the metrics (the probe's copy).
        points: Number of copies.
    """

    def __init__(self, module: nn.Module, points: int) -> None:
        self._places = list(_metric_places(module))
        metrics = [parent._modules[name] for parent, name in self._places]
        # One deepcopy for all metrics together, so that a metric with two names stays one metric.
        self._copies = [copy.deepcopy(metrics) for _ in range(points)]
        self.reset()

    def reset(self) -> None:
        """Forget everything the metrics have seen."""
        for metric in (m for copies in self._copies for m in copies):
            cast(Metric, metric).reset()

    def install(self, point: int) -> None:
        """Put the copies of ``point`` into the module."""
        for (parent, name), metric in zip(
            self._places, self._copies[point], strict=True
        ):
            parent._modules[name] = metric


def _metric_places(module: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Parents and names of all topmost metrics; a metric's own children belong to it."""
    for name, child in module._modules.items():
        if isinstance(child, (Metric, MetricCollection)):
            yield module, name
        elif child is not None:
            yield from _metric_places(child)
