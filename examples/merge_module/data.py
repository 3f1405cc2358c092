"""Data for the example: scikit-learn's digits (nothing to download) and MNIST from its four ``.gz`` files."""

import gzip
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
)


class TensorData(LightningDataModule, ABC):
    """Images that fit in memory, cut into training and validation parts once and for all, and a test part."""

    def __init__(self, batch_size: int, validation: int) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.validation = validation

    @abstractmethod
    def load(self, split: str) -> tuple[Tensor, Tensor]:
        """Inputs ``(N, D)`` in [0, 1] and labels ``(N,)`` of ``"train"`` or ``"test"``."""

    def setup(self, stage: str) -> None:
        """Read the files and hold out the last ``validation`` training samples."""
        inputs, labels = self.load("train")
        cut = len(inputs) - self.validation
        self.train = TensorDataset(inputs[:cut], labels[:cut])
        self.held_out = TensorDataset(inputs[cut:], labels[cut:])
        self.test = TensorDataset(*self.load("test"))

    def train_dataloader(self) -> DataLoader:
        """Shuffled training batches."""
        return _loader(self.train, self.batch_size, shuffle=True)

    def train_dataloader_in_order(self, batches: int) -> DataLoader:
        """The first training batches of 500, always the same."""
        return _loader(
            Subset(self.train, range(500 * batches)), 500, shuffle=False
        )

    def val_dataloader(self) -> DataLoader:
        """Held-out batches."""
        return _loader(self.held_out, 1000, shuffle=False)

    def test_dataloader(self) -> DataLoader:
        """Test batches."""
        return _loader(self.test, 1000, shuffle=False)


class Digits(TensorData):
    """1797 digits of 8×8 pixels from scikit-learn: 1297 to train, 250 held out, 250 to test.

    Args:
        batch_size: Samples in one training batch.
    """

    def __init__(self, batch_size: int = 128) -> None:
        super().__init__(batch_size, validation=250)

    def load(self, split: str) -> tuple[Tensor, Tensor]:
        """Read the digits in a fixed shuffled order."""
        from sklearn.datasets import load_digits

        images, labels = load_digits(return_X_y=True)
        order = np.random.default_rng(0).permutation(len(images))
        part = order[:-250] if split == "train" else order[-250:]
        return torch.from_numpy(images[part]).float() / 16, torch.from_numpy(
            labels[part]
        ).long()


class MNIST(TensorData):
    """MNIST: 55000 images to train, 5000 held out, 10000 to test; pixels divided by 255, flattened.

    Args:
        folder: Where ``train-images-idx3-ubyte.gz`` and the other three files lie.
        batch_size: Samples in one training batch.
        transform: What to do with the float images ``(N, 784)``.
    """

    def __init__(
        self,
        folder: str | Path,
        batch_size: int = 500,
        transform: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__(batch_size, validation=5000)
        self.folder = Path(folder)
        self.transform = transform or torch.nn.Identity()

    def load(self, split: str) -> tuple[Tensor, Tensor]:
        """Read one pair of idx files."""
        stem = {"train": "train", "test": "t10k"}[split]
        images = self._read(f"{stem}-images-idx3-ubyte.gz", 16).reshape(
            -1, 784
        )
        labels = self._read(f"{stem}-labels-idx1-ubyte.gz", 8)
        return self.transform(
            torch.from_numpy(images).float() / 255
        ), torch.from_numpy(labels).long()

    def _read(self, name: str, header: int) -> np.ndarray:
        with gzip.open(self.folder / name) as file:
            return np.frombuffer(file.read(), np.uint8, offset=header).copy()


def _loader(dataset: Dataset, batch_size: int, *, shuffle: bool) -> DataLoader:
    """Whole batches by one index operation each: no collation sample by sample."""
    order = RandomSampler(dataset) if shuffle else SequentialSampler(dataset)
    return DataLoader(
        dataset,
        sampler=BatchSampler(order, batch_size, drop_last=shuffle),
        batch_size=None,
    )
