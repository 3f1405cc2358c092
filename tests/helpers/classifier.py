"""A LightningModule that logs in every way Lightning allows, for tests of the callbacks and of barriers."""

from __future__ import annotations

from collections import OrderedDict

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassAUROC,
    MulticlassF1Score,
)

from lightning_rebasin import PermutationSpec

FEATURES, CLASSES = 6, 3


class Classifier(LightningModule):
    """A small MLP whose step logs a loss, stateful metrics, a collection and values reduced by max and sum."""

    def __init__(
        self,
        hidden: int = 8,
        dropout: float = 0.0,
        noise: bool = False,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            fc1=nn.Linear(FEATURES, hidden)
        )
        if batch_norm:
            layers["norm"] = nn.BatchNorm1d(hidden)
        layers["relu"] = nn.ReLU()
        if dropout:
            layers["dropout"] = nn.Dropout(dropout)
        layers["fc2"] = nn.Linear(hidden, CLASSES)
        self.net = nn.Sequential(layers)
        self.noise = noise
        self.val_acc = MulticlassAccuracy(CLASSES, average="micro")
        self.val_auroc = MulticlassAUROC(CLASSES)
        self.val_many = MetricCollection(
            {
                "f1": MulticlassF1Score(CLASSES),
                "macro": MulticlassAccuracy(CLASSES, average="macro"),
            },
            prefix="val_",
        )
        self.train_losses: list[float] = []
        self.example_input_array = torch.zeros(2, FEATURES)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(
        self, batch: tuple[Tensor, Tensor], batch_idx: int
    ) -> Tensor:
        x, y = batch
        loss = nn.functional.cross_entropy(self(x), y)
        self.train_losses.append(float(loss.detach()))
        self.log("train_loss", loss)
        return loss

    def validation_step(
        self,
        batch: tuple[Tensor, Tensor],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        x, y = batch
        logits = self(x + torch.rand_like(x) if self.noise else x)
        loss = nn.functional.cross_entropy(logits, y)
        self.log("val_loss", loss)
        self.log("val_largest", loss, reduce_fx="max")
        self.log("val_count", float(len(y)), reduce_fx="sum")
        if (
            self.trainer.num_val_batches == []
            or len(self.trainer.num_val_batches) == 1
        ):
            # Lightning wants one metric object per loader.
            self.val_acc(logits, y)
            self.log("val_acc", self.val_acc, on_step=False, on_epoch=True)
            self.val_auroc.update(logits, y)
            self.log("val_auroc", self.val_auroc)
            self.val_many.update(logits, y)
            self.log_dict(self.val_many)

    def spec(self) -> PermutationSpec:
        """Written by hand: the hidden units may be permuted."""
        table: dict[str, tuple[str | None, ...]] = {}
        table |= {
            "net.fc1.weight": ("h", None),
            "net.fc1.bias": ("h",),
            "net.fc2.weight": (None, "h"),
        }
        names = ("weight", "bias", "running_mean", "running_var")
        table |= {
            f"net.norm.{name}": ("h",)
            for name in names
            if f"net.norm.{name}" in self.state_dict()
        }
        return PermutationSpec.from_table(table, self.state_dict())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.02)


def blobs(samples: int, seed: int) -> TensorDataset:
    """Points around one centre per class, the same centres for every seed."""
    centres = torch.randn(
        CLASSES, FEATURES, generator=torch.Generator().manual_seed(123)
    )
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (samples,), generator=generator)
    return TensorDataset(
        centres[labels] + torch.randn(samples, FEATURES, generator=generator),
        labels,
    )


def train_loader(
    samples: int = 64, batch_size: int = 16
) -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(blobs(samples, 0), batch_size=batch_size, shuffle=True)


def val_loader(
    samples: int = 50, batch_size: int = 16, seed: int = 1
) -> DataLoader[tuple[Tensor, ...]]:
    """The last batch is smaller than the others."""
    return DataLoader(blobs(samples, seed), batch_size=batch_size)
