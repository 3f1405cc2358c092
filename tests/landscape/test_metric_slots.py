"""Every point has metrics of its own."""

from __future__ import annotations

import torch
from torch import nn
from torchmetrics import MeanMetric, MetricCollection

from lightning_rebasin.landscape.metric_slots import MetricSlots


class Measured(nn.Module):
    """A metric with two names, a collection, and a metric deeper inside."""

    def __init__(self):
        super().__init__()
        self.one = MeanMetric()
        self.same = self.one
        self.many = MetricCollection({"mean": MeanMetric()})
        self.inner = nn.ModuleDict({"mean": MeanMetric()})


def test_states_of_points_do_not_mix():
    module = Measured()
    slots = MetricSlots(module, 2)
    for batch in range(3):
        for point in range(2):
            slots.install(point)
            for metric in (
                module.one,
                module.many["mean"],
                module.inner["mean"],
            ):
                metric.update(torch.tensor(float(10 * point + batch)))
    for point in range(2):
        slots.install(point)
        for metric in (module.one, module.many["mean"], module.inner["mean"]):
            assert float(metric.compute()) == 10 * point + 1


def test_a_metric_with_two_names_stays_one():
    module = Measured()
    MetricSlots(module, 2).install(1)
    assert module.one is module.same


def test_reset_forgets_at_every_point():
    module = Measured()
    slots = MetricSlots(module, 2)
    slots.install(1)
    module.one.update(torch.tensor(5.0))
    slots.reset()
    slots.install(1)
    module.one.update(torch.tensor(1.0))
    assert float(module.one.compute()) == 1.0


def test_what_the_users_metric_had_seen_does_not_count():
    module = Measured()
    module.one.update(torch.tensor(100.0))
    slots = MetricSlots(module, 1)
    slots.install(0)
    module.one.update(torch.tensor(1.0))
    assert float(module.one.compute()) == 1.0
