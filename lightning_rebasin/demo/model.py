"""The network of the demo: the paper's multilayer perceptron as an ordinary LightningModule."""

from __future__ import annotations

from itertools import pairwise

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_accuracy
from typing_extensions import override


class Classifier(LightningModule):
    """``depth`` hidden layers of ``width`` ReLU units, cross entropy, Adam.

    With 784 inputs and width 512 this is the MNIST network of Git Re-Basin (Ainsworth et al., 2023).

    Args:
        features: Number of inputs.
        width: Units per hidden layer.
        depth: Number of hidden layers.
        classes: Number of labels.
        learning_rate: Step size of Adam.
    """

    def __init__(
        self,
        features: int = 64,
        width: int = 256,
        depth: int = 3,
        classes: int = 10,
        learning_rate: float = 1e-3,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.learning_rate = learning_rate
        sizes = [features, *[width] * depth]
        layers: list[nn.Module] = []
        for before, after in pairwise(sizes):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.network = nn.Sequential(*layers, nn.Linear(width, classes))
        self.example_input_array = torch.zeros(2, features)

    @override
    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(batch, classes)`` of images ``(batch, features)``."""
        logits: Tensor = self.network(images)
        return logits

    @override
    def training_step(
        self, batch: tuple[Tensor, Tensor], batch_idx: int
    ) -> Tensor:
        """Cross entropy of one batch, logged as ``train_loss``."""
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    @override
    def validation_step(
        self, batch: tuple[Tensor, Tensor], batch_idx: int
    ) -> None:
        """Log ``val_loss`` and ``val_accuracy``."""
        self._evaluate(batch, "val")

    @override
    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log ``test_loss`` and ``test_accuracy``."""
        self._evaluate(batch, "test")

    def _evaluate(self, batch: tuple[Tensor, Tensor], stage: str) -> None:
        images, labels = batch
        logits = self(images)
        accuracy = multiclass_accuracy(
            logits, labels, num_classes=logits.shape[1], average="micro"
        )
        loss = nn.functional.cross_entropy(logits, labels)
        self.log_dict(
            {f"{stage}_loss": loss, f"{stage}_accuracy": accuracy},
            batch_size=len(labels),
            prog_bar=True,
        )

    @override
    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=self.learning_rate)
