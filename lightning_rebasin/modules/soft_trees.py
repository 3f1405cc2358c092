"""A soft tree ensemble that trains: loss, metrics and optimiser around :class:`SoftTreeEnsemble`."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.nn.functional import cross_entropy, mse_loss
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.regression import MeanAbsoluteError
from typing_extensions import override

from lightning_rebasin.errors import ConfigurationError
from lightning_rebasin.trees.ensemble import SoftTreeEnsemble
from lightning_rebasin.trees.shapes import TreeKind

Task = Literal["classification", "regression"]


class SoftTreeModule(LightningModule):
    """An ensemble of soft trees with cross entropy or squared error, and Adam.

    Batches are pairs ``(x, y)``: x floating ``(batch, inputs)``; y class numbers ``(batch,)`` for a classification, or
    values ``(batch,)`` or ``(batch, outputs)`` for a regression.  Logs ``train_loss``, ``val_loss`` and ``test_loss``,
    and beside the latter two ``val_accuracy`` and ``test_accuracy``, or the mean absolute ``val_error`` and
    ``test_error``.

    Args:
        kind: Kind of the trees, see :class:`~lightning_rebasin.trees.SoftTreeEnsemble`.
        depth: How many rules an example meets at most.
        trees: Number of trees.
        inputs: Number of features.
        outputs: Number of classes, or of values to predict.
        task: What is learned.
        learning_rate: Step size of Adam.

    Raises:
        ConfigurationError: An option has a value that cannot work.

    Example:
        >>> module = SoftTreeModule("oblivious", depth=2, trees=16, inputs=4, outputs=3)
        >>> module(torch.zeros(5, 4)).shape
        torch.Size([5, 3])

    References:
        Kanoh and Sugiyama, "Linear Mode Connectivity in Differentiable Tree Ensembles", ICLR 2025.
    """

    def __init__(
        self,
        kind: TreeKind = "oblivious",
        depth: int = 2,
        trees: int = 256,
        inputs: int = 10,
        outputs: int = 2,
        *,
        task: Task = "classification",
        learning_rate: float = 1e-3,
    ) -> None:
        super().__init__()
        if task not in get_args(Task):
            raise ConfigurationError(
                f"task={task!r} is unknown; choose one of {get_args(Task)}"
            )
        if task == "classification" and outputs < 2:
            raise ConfigurationError(
                f"a classification needs at least 2 outputs, one for each class, not {outputs}"
            )
        self.save_hyperparameters()
        self.task = task
        self.learning_rate = learning_rate
        self.ensemble = SoftTreeEnsemble(kind, depth, trees, inputs, outputs)
        self.val_metric = self._metric(outputs)
        self.test_metric = self._metric(outputs)
        self.example_input_array = torch.zeros(2, inputs)

    def _metric(self, outputs: int) -> Metric:
        if self.task == "regression":
            return MeanAbsoluteError()
        return MulticlassAccuracy(num_classes=outputs, average="micro")

    @override
    def forward(self, x: Tensor) -> Tensor:
        """What the ensemble says, ``(batch, outputs)``."""
        output: Tensor = self.ensemble(x)
        return output

    @override
    def training_step(
        self, batch: tuple[Tensor, Tensor], batch_idx: int
    ) -> Tensor:
        """The loss of one batch, logged as ``train_loss``."""
        loss = self._loss(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    @override
    def validation_step(
        self, batch: tuple[Tensor, Tensor], batch_idx: int
    ) -> None:
        """Log ``val_loss`` and the metric."""
        self._evaluate(batch, "val", self.val_metric)

    @override
    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log ``test_loss`` and the metric."""
        self._evaluate(batch, "test", self.test_metric)

    @override
    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=self.learning_rate)

    def _loss(self, output: Tensor, target: Tensor) -> Tensor:
        if self.task == "regression":
            return mse_loss(output, target.reshape(output.shape))
        return cross_entropy(output, target)

    def _evaluate(
        self, batch: tuple[Tensor, Tensor], stage: str, metric: Metric
    ) -> None:
        x, target = batch
        output = self(x)
        loss = self._loss(output, target)
        if self.task == "regression":
            metric.update(output, target.reshape(output.shape))
            name = f"{stage}_error"
        else:
            metric.update(output, target)
            name = f"{stage}_accuracy"
        self.log(f"{stage}_loss", loss, batch_size=len(x), prog_bar=True)
        self.log(name, metric, batch_size=len(x), prog_bar=True)
