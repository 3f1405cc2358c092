"""The networks of the example, as anybody would write them: nothing in them knows about merging."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional


class Classifier(LightningModule):
    """Cross-entropy, accuracy and Adam around any network.

    Args:
        network: Maps inputs to logits.
        example: Inputs that the network accepts.
        lr: Learning rate of Adam.
    """

    def __init__(
        self, network: nn.Module, example: Tensor, lr: float = 1e-3
    ) -> None:
        super().__init__()
        self.network = network
        self.example_input_array = example
        self.lr = lr

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.network(x)

    def training_step(
        self, batch: tuple[Tensor, Tensor], batch_idx: int
    ) -> Tensor:
        """Cross-entropy of one batch."""
        x, y = batch
        loss = functional.cross_entropy(self(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(
        self, batch: tuple[Tensor, Tensor], batch_idx: int
    ) -> None:
        """Loss and accuracy of one held-out batch."""
        x, y = batch
        logits = self(x)
        self.log("val_loss", functional.cross_entropy(logits, y))
        self.log("val_accuracy", (logits.argmax(-1) == y).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam, as in the paper's MNIST recipe."""
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class MLP(Classifier):
    """A multilayer perceptron with ReLU.

    Args:
        widths: Units of every layer, inputs and outputs included.
        lr: Learning rate of Adam.
    """

    def __init__(
        self,
        widths: Sequence[int] = (784, 512, 512, 512, 10),
        lr: float = 1e-3,
    ) -> None:
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise(widths):
            layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
        super().__init__(
            nn.Sequential(*layers[:-1]), torch.rand(4, widths[0]), lr
        )


class LeNetNetwork(nn.Module):
    """Two convolutions with pooling, two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.fc1 = nn.Linear(800, 500)
        self.fc2 = nn.Linear(500, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images ``(N, 1, 28, 28)``."""
        x = functional.max_pool2d(functional.relu(self.conv1(x)), 2)
        x = functional.max_pool2d(functional.relu(self.conv2(x)), 2)
        return self.fc2(functional.relu(self.fc1(x.flatten(1))))


class LeNet(Classifier):
    """LeNet for MNIST.

    Args:
        lr: Learning rate of Adam.
    """

    def __init__(self, lr: float = 1e-3) -> None:
        super().__init__(LeNetNetwork(), torch.rand(4, 1, 28, 28), lr)
