"""A training of one weight that falls into one of two valleys, as the first samples decide."""

from __future__ import annotations

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


class Bistable(LightningModule):
    """``L = (w² − 1)² + x·w``: from w = 0 the noise x decides between the valleys at w = ±1; accuracy is |w| > ½."""

    def __init__(self, accuracy: bool = True) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1))
        self.accuracy = accuracy

    def training_step(
        self, batch: tuple[Tensor, ...], batch_idx: int
    ) -> Tensor:
        noise = batch[0].mean() * self.w
        return ((self.w**2 - 1) ** 2 + noise).sum()

    def validation_step(
        self, batch: tuple[Tensor, ...], batch_idx: int
    ) -> None:
        self.log("loss", ((self.w**2 - 1) ** 2).sum(), batch_size=1)
        if self.accuracy:
            self.log("accuracy", float(self.w.abs() > 0.5), batch_size=1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def noise(
    *, shuffle: bool = True, generator: torch.Generator | None = None
) -> DataLoader[tuple[Tensor, ...]]:
    """Twelve samples of noise, half of them positive."""
    x = torch.tensor([1.0, -1.0] * 6)
    return DataLoader(
        TensorDataset(x), batch_size=1, shuffle=shuffle, generator=generator
    )
