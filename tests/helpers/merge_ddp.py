"""Two processes learn one permutation, or elements of all kinds; run by tests/modules/test_merge_ddp.py.

python merge_ddp.py OUT DEVICES BATCH_SIZE [KINDS]
"""

from __future__ import annotations

import os
import sys
import warnings
from functools import partial
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from helpers.classifier import CLASSES, FEATURES, blobs
from helpers.leave import leave
from helpers.models import mlp
from lightning_rebasin import MergeModule


class Net(LightningModule):
    """An MLP that logs."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(FEATURES, 16, CLASSES)
        self.example_input_array = torch.zeros(2, FEATURES)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(
        self, batch: tuple[Tensor, Tensor], batch_idx: int
    ) -> Tensor:
        loss = cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss


def ends() -> list[dict[str, Tensor]]:
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        states.append(
            {
                name: tensor.clone()
                for name, tensor in Net().state_dict().items()
            }
        )
    return states


def loader(
    data: TensorDataset, devices: int, size: int
) -> DataLoader[tuple[Tensor, ...]]:
    """In order and without remainder: two ranks with half batches see together what one process sees."""
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    return DataLoader(
        data,
        size,
        sampler=DistributedSampler(data, devices, rank, shuffle=False),
    )


def run(
    out: Path, devices: int, size: int, kinds: str = "permutation"
) -> None:
    module = MergeModule(
        Net(),
        *ends(),
        kinds=kinds,
        optimizer=partial(torch.optim.SGD, lr=0.5, momentum=0.9),
    )
    trainer = Trainer(
        max_epochs=2,
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # Lightning's own always shuffles training data
        precision="64-true",  # rounding must not decide an assignment
    )
    trainer.fit(
        module,
        loader(blobs(64, 0), devices, size),
        loader(blobs(32, 1), devices, size),
    )
    state = {
        "learned": [p.detach() for p in module.learned()],
        "elements": dict(module.transform.elements),
        "best": float(trainer.callback_metrics["best_midpoint_loss"]),
    }
    torch.save(state, out / f"{devices}-{trainer.global_rank}.pt")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    seed_everything(0, verbose=False)
    run(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])
    leave()
