"""Two processes learn one path; run by tests/modules/test_path_module.py.

python path_ddp.py OUT DEVICES BATCH_SIZE
"""

from __future__ import annotations

import copy
import os
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import seed_everything
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from helpers.classifier import Classifier, blobs
from helpers.leave import leave
from helpers.quiet import quiet_trainer
from lightning_rebasin import CurveModule, StarModule


def loader(data: TensorDataset, devices: int, size: int) -> DataLoader[Any]:
    """In order and without remainder: two ranks with half batches see together what one process sees."""
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    deal = DistributedSampler(data, devices, rank, shuffle=False)
    return DataLoader(data, size, sampler=deal)


def ends(count: int) -> list[dict[str, Any]]:
    states = []
    for seed in range(count):
        torch.manual_seed(seed)
        states.append(copy.deepcopy(Classifier(16).state_dict()))
    return states


def run(out: Path, devices: int, size: int) -> None:
    sgd = partial(torch.optim.SGD, lr=0.2, momentum=0.9)
    curve = CurveModule(
        Classifier(16),
        ends(2),
        "polygon",
        2,
        start="matched",
        optimizer=sgd,
        weight_decay=0.01,
    )
    star = StarModule(Classifier(16), ends(3), match="epoch", optimizer=sgd)
    kept: dict[str, Any] = {}
    for module in (curve, star):
        trainer = quiet_trainer(
            out,
            max_epochs=2,
            devices=devices,
            strategy="ddp" if devices > 1 else "auto",
            use_distributed_sampler=False,
            precision="64-true",
        )
        trainer.fit(
            module,
            loader(blobs(64, 0), devices, size),
            loader(blobs(32, 1), devices, size),
        )
        kept[module.word] = {
            "learned": [
                p.detach().cpu()
                for p in module.parameters()
                if p.requires_grad
            ],
            "loss": float(trainer.callback_metrics[f"val_{module.word}_loss"]),
            # Logged by the network's validation_step: averages, and torchmetrics with a state.
            "metrics": {
                name: float(value)
                for name, value in trainer.callback_metrics.items()
                if name.endswith(("/mean", "/worst"))
            },
        }
    torch.save(kept, out / f"{devices}-{trainer.global_rank}.pt")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    seed_everything(0, verbose=False)
    run(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    leave()
