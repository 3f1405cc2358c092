"""How a network runs on what its data loader gives."""

from __future__ import annotations

import pytest
import torch
import torchmetrics
from helpers.models import mlp
from lightning.pytorch import LightningModule
from torch import nn
from torch.nn import functional

from lightning_rebasin.symmetry import (
    Example,
)
from lightning_rebasin.symmetry.run.examples import as_example
from lightning_rebasin.symmetry.trace.batch_example import batch_example


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def labelled(n=6, seed=0):
    return torch.randn(n, 5, generator=generator(seed)), torch.arange(n) % 3


class Classifier(LightningModule):
    """No forward at all: loss and metrics in ``validation_step``, which also asks for its trainer and plots."""

    def __init__(self, returns="loss"):
        super().__init__()
        self.encoder, self.head = mlp(5, 8, 6), nn.Linear(6, 3)
        self.accuracy = torchmetrics.Accuracy("multiclass", num_classes=3)
        self.returns = returns
        self.seen = []

    def validation_step(self, batch, batch_idx):
        x, y = batch
        logits = self.head(self.encoder(x).relu())
        loss = functional.cross_entropy(logits, y)
        self.accuracy(logits, y)
        self.log("val_acc", self.accuracy, prog_bar=True)
        self.log_dict(
            {
                "val_loss": loss,
                "margin": logits.std(),
                "epoch": self.current_epoch,
            },
            on_epoch=True,
        )
        self.print("seen", len(self.seen))
        self.logger.experiment.add_histogram(
            "logits", logits, self.global_step
        )
        if self.trainer.sanity_checking:
            self.seen.append(batch_idx)
        return {
            "loss": loss,
            "logits": {"logits": logits, "loss": loss},
            None: None,
        }[self.returns]


def test_batch_example_prefers_forward_and_falls_back_to_the_step():
    class Forward(Classifier):
        def forward(self, x):
            return self.head(self.encoder(x).relu())

    batch = labelled()
    assert batch_example(Forward(), batch).method == "forward"
    assert batch_example(Classifier(), batch).method == "validation_step"
    assert batch_example(mlp(5, 3, 1), batch).args[0] is batch[0]

    class Trained(LightningModule):
        def __init__(self):
            super().__init__()
            self.net = mlp(5, 3, 1)

        def training_step(self, batch):
            return self.net(batch["x"]).square().mean()

    found = batch_example(Trained(), {"x": batch[0]})
    assert found.method == "training_step"
    assert as_example(found) is found


def test_inputs_may_be_picked_out_of_the_batch():
    batch = {"image": torch.zeros(2, 5), "label": torch.zeros(2)}
    found = batch_example(
        mlp(5, 3, 1), batch, lambda b: Example((b["image"],))
    )
    assert found.method == "forward" and found.args[0] is batch["image"]


def test_a_network_without_a_step_gets_the_error_of_its_batch():
    with pytest.raises(KeyError):
        batch_example(mlp(5, 3, 1), {"x": 1}, lambda b: b["y"])
