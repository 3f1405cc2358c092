"""The metric in a validation_step, alone, in a collection and over two processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.detection_ddp import Detecting, loader, network
from helpers.trainers import trainer_in
from helpers.untouched import untouched
from helpers.ways import Islands, detector
from torchmetrics import MetricCollection

from lightning_rebasin import AdversarialBarrier
from lightning_rebasin.errors import ConfigurationError, DataError
from lightning_rebasin.inputs.rates import auroc, true_positive_rate

TESTS = Path(__file__).parents[1]


def test_it_is_the_rate_of_the_scores():
    torch.manual_seed(0)
    inputs = torch.cat([torch.randn(40, 1), 1 + 0.3 * torch.randn(30, 1)])
    attacked = torch.arange(70) < 40
    scores = detector().scores(Islands(), inputs)
    expected = {
        None: auroc(scores, attacked),
        0.1: true_positive_rate(scores, attacked, 0.1),
    }
    for rate, value in expected.items():
        metric = AdversarialBarrier(detector(), rate)
        for chosen in (slice(0, 33), slice(33, 70)):
            metric.update(Islands(), inputs[chosen], attacked[chosen])
        assert float(metric.compute()) == pytest.approx(value)
        metric.reset()
        assert metric.scores == []


def test_a_collection_measures_once():
    calls = []

    class Counting(Islands):
        def forward(self, x):
            calls.append(len(x))
            return super().forward(x)

    metrics = MetricCollection(
        {
            "auroc": AdversarialBarrier(detector()),
            "tpr_at_1": AdversarialBarrier(detector(), 0.01),
            "tpr_at_5": AdversarialBarrier(detector(), 0.05),
        }
    )
    module = Counting()
    metrics.update(module, torch.tensor([[1.0]]), attacked=False)
    first = len(calls)
    metrics.update(module, torch.tensor([[-1.0]]), attacked=True)
    # The first update finds out which metrics share their states.
    assert len(calls) - first == first / 3
    assert {k: float(v) for k, v in metrics.compute().items()} == {
        "auroc": 1.0,
        "tpr_at_1": 1.0,
        "tpr_at_5": 1.0,
    }


def test_the_module_is_untouched():
    module = torch.nn.Sequential(Islands(), torch.nn.Dropout(0.5))
    metric, inputs = AdversarialBarrier(detector()), torch.ones(3, 1)
    with untouched(module):
        metric.update(module, inputs, attacked=False)


def test_in_a_validation_step_it_is_logged_like_any_metric(tmp_path):
    module = Detecting()
    trainer = trainer_in(tmp_path)
    (logged,) = trainer.validate(module, loader(1, 0), verbose=False)
    scores, truth = [], []
    for clean, attacked in loader(1, 0):
        for inputs, kind in ((clean, False), (attacked, True)):
            scores.append(detector().scores(network(), inputs))
            truth += [kind] * len(inputs)
    expected = auroc(torch.cat(scores), torch.tensor(truth))
    assert 0.5 < expected < 1
    assert logged["auroc"] == pytest.approx(expected)
    assert logged["rates_tpr"] == pytest.approx(
        true_positive_rate(torch.cat(scores), torch.tensor(truth), 0.2)
    )


def test_two_processes_see_what_one_sees(tmp_path):
    if not torch.distributed.is_available():
        pytest.skip("this torch was built without torch.distributed")
    environment = {
        **os.environ,
        "PYTHONPATH": f"{TESTS}:{TESTS.parent}",
        "OMP_NUM_THREADS": "1",
        "PL_TORCH_DISTRIBUTED_BACKEND": "gloo",
        "CUDA_VISIBLE_DEVICES": "",
    }
    script = TESTS / "helpers" / "detection_ddp.py"
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), "2"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (
        torch.load(tmp_path / f"2-{rank}.pt", weights_only=True)
        for rank in range(2)
    )
    trainer = trainer_in(tmp_path)
    (one,) = trainer.validate(Detecting(), loader(1, 0), verbose=False)
    assert first == second == one
    assert 0.5 < one["auroc"] < 1


def test_wrong_input_is_refused():
    with pytest.raises(ConfigurationError, match=r"false_positive_rate=1\.5"):
        AdversarialBarrier(detector(), 1.5)
    metric = AdversarialBarrier(detector())
    with pytest.raises(DataError, match=r"shape \(2,\) for 3 inputs"):
        metric.update(Islands(), torch.ones(3, 1), torch.ones(2))
    metric.update(Islands(), torch.ones(3, 1), attacked=True)
    with pytest.raises(DataError, match="3 and 0"):
        metric.compute()
