"""Losses over two or four numbers whose landscapes can be written down, as LightningModules."""

from __future__ import annotations

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


class Valley(LightningModule):
    """``L(w) = (|w|² − 1)²``: a circular valley; the batch takes no part."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2))

    def training_step(self, batch: object, batch_idx: int) -> Tensor:
        loss = (self.w.square().sum() - 1).square()
        self.log("depth", loss)
        return loss


class TwoLayers(LightningModule):
    """``L(u, v) = (u·v − 1)² x²``: a linear network of two layers whose target is the identity."""

    def __init__(self) -> None:
        super().__init__()
        self.u = nn.Parameter(torch.zeros(2))
        self.v = nn.Parameter(torch.zeros(2))

    def training_step(
        self, batch: tuple[Tensor, ...], batch_idx: int
    ) -> Tensor:
        x = batch[0]
        return (x * (self.u @ self.v) - x).square().mean()


def nothing(batches: int, size: int = 2) -> DataLoader[tuple[Tensor, ...]]:
    """Batches of ones: E[x²] = 1."""
    data = TensorDataset(torch.ones(batches * size, 1))
    return DataLoader(data, batch_size=size)
