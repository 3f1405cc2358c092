"""Models that a person could name on the command line, each with its own difficulty."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from helpers.models import mlp


class Tower(nn.Module):
    """A stem given as a module or a width, and a head: nested classes of a LightningCLI configuration."""

    def __init__(
        self,
        stem: nn.Module | None = None,
        width: int = 6,
        sizes: Sequence[int] = (1, 2),
    ) -> None:
        super().__init__()
        self.stem = stem if stem is not None else mlp(3, width, 4)
        self.head = nn.Linear(4, sizes[-1])

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.stem(x).relu())
        return logits


class Exemplary(Tower):
    """Brings its own example."""

    example_input_array = torch.ones(2, 3)


class Dead(Tower):
    """Its output says nothing about its units."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 0


class Reader(nn.Module):
    """Reads tokens and their weights."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.net = mlp(4, 5, 2)

    def forward(self, tokens: Tensor, weights: Tensor) -> Tensor:
        bag = (self.embed(tokens) * weights[..., None]).sum(1)
        logits: Tensor = self.net(bag)
        return logits


class Stepwise(LightningModule):
    """Computes from a batch, in validation_step alone."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(3, 5, 2)

    def validation_step(self, batch: dict[str, Tensor]) -> None:
        logits = self.net(batch["x"])
        self.log("loss", nn.functional.cross_entropy(logits, batch["y"]))


def batches() -> list[dict[str, Tensor]]:
    """One batch for Stepwise."""
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    return [{"x": x, "y": torch.arange(4) % 2}]


def not_a_module() -> int:
    return 3
