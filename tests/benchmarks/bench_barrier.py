"""What a barrier costs, against the validation epoch it rides on and against trainer.validate per λ.

Run apart: ``pytest -m benchmark tests/benchmarks/bench_barrier.py -s``.  Everything is timed in one process, in turns,
and reported as ratios of medians.
"""

from __future__ import annotations

import statistics
import time

import pytest
import torch
from helpers.classifier import Classifier, val_loader
from helpers.models import BatchNormCNN
from helpers.trainers import trainer_in
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_rebasin import LossBarrier, measure_barrier
from lightning_rebasin.demo.model import Classifier as PaperMLP

POINTS = 11
ROUNDS = 3


class Convolutional(LightningModule):
    """A small convolutional network with a loss and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.net = BatchNormCNN(width=16, classes=10)

    def validation_step(self, batch, batch_idx):
        self.log(
            "val_loss",
            nn.functional.cross_entropy(self.net(batch[0]), batch[1]),
        )


def seconds(function) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def images(samples, *shape):
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(
        torch.rand(samples, *shape, generator=generator),
        torch.randint(10, (samples,), generator=generator),
    )


CASES = {
    "MLP 784-512-512-512-10": (
        lambda: PaperMLP(features=784, width=512),
        lambda: images(10_000, 784),
        500,
        0.6,
    ),
    "CNN with batch norm": (
        Convolutional,
        lambda: images(1_000, 3, 16, 16),
        100,
        1.15,
    ),
}


@pytest.mark.benchmark
@pytest.mark.parametrize("case", CASES)
def test_cost_per_point(tmp_path, case):
    """(validate with the callback − validate without) / (points × validate without), without matching."""
    make, data, batch, limit = CASES[case]
    module, loader = make(), DataLoader(data(), batch_size=batch)
    reference = {
        k: v + 0.01 if v.is_floating_point() else v
        for k, v in module.state_dict().items()
    }
    plain = trainer_in(tmp_path, logger=False)
    measuring = trainer_in(
        tmp_path, callbacks=[LossBarrier(reference, "none", points=POINTS)]
    )
    bare, ridden, standalone = [], [], []
    for _ in range(ROUNDS):
        bare.append(
            seconds(lambda: plain.validate(module, loader, verbose=False))
        )
        ridden.append(
            seconds(lambda: measuring.validate(module, loader, verbose=False))
        )
        module.trainer = plain
        standalone.append(
            seconds(
                lambda: measure_barrier(
                    module,
                    module.state_dict(),
                    reference,
                    loader,
                    points=POINTS,
                )
            )
        )
    base = statistics.median(bare)
    per_point = (statistics.median(ridden) - base) / (POINTS * base)
    alone = statistics.median(standalone) / (POINTS * base)
    print(
        f"\n{case}: trainer.validate {base:.3f} s; LossBarrier {per_point:.2f} of it per λ, measure_barrier {alone:.2f}"
    )
    assert per_point <= limit, (
        "a ratio within one process, not a wall-clock time"
    )


@pytest.mark.benchmark
def test_fixed_cost_of_a_measurement(tmp_path):
    """What a measurement costs before its first batch, and after its last: copying, logging, writing."""
    module, loader = Classifier(), val_loader(8)
    plain = trainer_in(tmp_path, logger=False)
    measuring = trainer_in(
        tmp_path,
        callbacks=[LossBarrier(dict(module.state_dict()), "none", points=2)],
    )
    bare, ridden = [], []
    for _ in range(ROUNDS):
        bare.append(
            seconds(lambda: plain.validate(module, loader, verbose=False))
        )
        ridden.append(
            seconds(lambda: measuring.validate(module, loader, verbose=False))
        )
    difference = statistics.median(ridden) - statistics.median(bare)
    print(
        f"\nfixed cost {1e3 * difference:.1f} ms, of a smallest validation of {1e3 * statistics.median(bare):.1f} ms"
    )
