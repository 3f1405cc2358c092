"""A module that logs AdversarialBarrier; as a program, its validation over processes.

python detection_ddp.py OUT DEVICES
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset
from torchmetrics import MetricCollection

from helpers.leave import leave
from helpers.quiet import quiet_trainer
from helpers.ways import Islands, detector
from lightning_rebasin import AdversarialBarrier


def network() -> nn.Module:
    return Islands()


class Detecting(LightningModule):
    """Validates on clean inputs beside attacked ones."""

    def __init__(self) -> None:
        super().__init__()
        self.network = network()
        self.detection = AdversarialBarrier(detector())
        self.rates = MetricCollection(
            {"tpr": AdversarialBarrier(detector(), 0.2)}, prefix="rates_"
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)

    def validation_step(
        self, batch: tuple[Tensor, Tensor], batch_idx: int
    ) -> None:
        for inputs, attacked in zip(batch, (False, True), strict=True):
            self.detection.update(self, inputs, attacked)
            self.rates.update(self, inputs, attacked)
        self.log("auroc", self.detection)
        self.log_dict(self.rates)


def loader(devices: int, rank: int) -> DataLoader[Any]:
    """Clean inputs around 1, attacked ones around ±1: some of them are behind the lake."""
    generator = torch.Generator().manual_seed(0)
    clean = 1 + 0.3 * torch.randn(24, 1, generator=generator)
    sides = torch.where(torch.rand(24, 1, generator=generator) < 0.5, 1.0, -1)
    attacked = sides + 0.3 * torch.randn(24, 1, generator=generator)
    data = TensorDataset(clean, attacked)
    deal = DistributedSampler(data, devices, rank, shuffle=False)
    return DataLoader(data, 6, sampler=deal)


def run(out: Path, devices: int) -> None:
    trainer = quiet_trainer(
        out,
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        use_distributed_sampler=False,
    )
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    (logged,) = trainer.validate(
        Detecting(), loader(devices, rank), verbose=False
    )
    torch.save(logged, out / f"{devices}-{trainer.global_rank}.pt")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    run(Path(sys.argv[1]), int(sys.argv[2]))
    leave()
