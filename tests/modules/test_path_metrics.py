"""Metrics over points: mean and worst, in the direction in which the metric gets worse."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.classifier import Classifier, blobs
from helpers.ends import states
from torch import nn

from lightning_rebasin.landscape.paths import Line
from lightning_rebasin.landscape.probe import Place
from lightning_rebasin.modules.inner import InnerModel
from lightning_rebasin.modules.path_metrics import (
    PathMetrics,
    measured_by,
    own_validation,
    summary,
)


def test_worst_is_the_largest_loss_and_the_smallest_accuracy() -> None:
    assert summary([1.0, 3.0], higher_is_better=False) == (2.0, 3.0)
    assert summary([1.0, 3.0], higher_is_better=True) == (2.0, 1.0)
    assert all(
        map(math.isnan, summary([1.0, math.nan], higher_is_better=True))
    )


def test_a_network_is_measured_by_its_own_step_or_by_the_training_loss() -> (
    None
):
    own = InnerModel(Classifier(16), None)
    assert own_validation(own.model) is own.model
    assert measured_by(own) == (own.model, None)
    plain = InnerModel(nn.Linear(1, 1), lambda net, batch: net(batch).sum())
    module, loss = measured_by(plain)
    assert own_validation(plain.model) is None
    assert module is plain.model
    assert loss is not None
    batch = torch.ones(2, 1)
    assert float(loss(module, batch)) == float(module(batch).sum())


def test_metrics_at_two_points() -> None:
    class Scored(Classifier):
        def validation_step(self, batch, batch_idx):
            right = self(batch[0]).argmax(1) == batch[1]
            self.log("acc", right.double().mean())

    a, b = states(2)
    line = Line(a, b)
    metrics = PathMetrics(Scored(16), [line.at(0.0), line.at(1.0)], [{}, {}])
    x, y = blobs(50, 1).tensors
    with torch.no_grad():
        for k in (0, 32):
            metrics.update((x[k : k + 32], y[k : k + 32]), Place(k // 32))
        expected = []
        for state in (a, b):
            model = Classifier(16)
            model.load_state_dict(state)
            expected.append(float((model(x).argmax(1) == y).double().mean()))
    found = metrics.finish(None)
    assert found["acc"].mean == pytest.approx(sum(expected) / 2)
    assert found["acc"].worst == pytest.approx(min(expected))
