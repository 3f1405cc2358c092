"""Data for the demo: scikit-learn's digits, which come with the package, or MNIST-like idx files from a folder."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
)

from lightning_rebasin.errors import DataError, MissingExtraError

_IDX = {"train": "train", "test": "t10k"}


@dataclass(frozen=True, eq=False)
class Classification:
    """A classification data set in memory.

    Args:
        name: What to call it.
        train: Images ``(n, features)`` in [0, 1] and labels ``(n,)``.
        test: The same, held out.
    """

    name: str
    train: TensorDataset
    test: TensorDataset

    @property
    def features(self) -> int:
        """Number of inputs per sample."""
        return int(self.train.tensors[0].shape[1])

    @property
    def classes(self) -> int:
        """Number of labels."""
        return int(self.train.tensors[1].max()) + 1


def digits() -> Classification:
    """The 1,797 8×8 digits of scikit-learn; every fifth image of a fixed shuffle is held out.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtraError(
            "the demo's embedded data need scikit-learn: pip install 'lightning-rebasin[demo]'"
        ) from error
    pixels, labels = load_digits(return_X_y=True)
    images, targets = (
        torch.tensor(pixels, dtype=torch.float32) / 16,
        torch.tensor(labels),
    )
    order = torch.randperm(
        len(targets), generator=torch.Generator().manual_seed(0)
    )
    held_out = len(targets) // 5
    test, train = order[:held_out], order[held_out:]
    return Classification(
        "digits",
        TensorDataset(images[train], targets[train]),
        TensorDataset(images[test], targets[test]),
    )


def idx_folder(folder: str | Path) -> Classification:
    """The four idx files of MNIST or Fashion-MNIST, plain or gzipped, pixels divided by 255.

    Args:
        folder: Holds ``train-images-idx3-ubyte[.gz]``, ``train-labels-idx1-ubyte[.gz]`` and the two ``t10k-`` files.

    Raises:
        DataError: A file is missing or malformed; the message names it.
    """
    folder = Path(folder)
    parts = {}
    for split, stem in _IDX.items():
        images = _read_idx(folder, f"{stem}-images-idx3-ubyte", 3)
        labels = _read_idx(folder, f"{stem}-labels-idx1-ubyte", 1)
        if len(images) != len(labels):
            raise DataError(
                f"{folder}: {split} has {len(images)} images but {len(labels)} labels"
            )
        parts[split] = TensorDataset(
            images.flatten(1).float() / 255, labels.long()
        )
    return Classification(folder.resolve().name, parts["train"], parts["test"])


def _read_idx(folder: Path, name: str, ndim: int) -> Tensor:
    path = next(
        (p for p in (folder / f"{name}.gz", folder / name) if p.is_file()),
        None,
    )
    if path is None:
        raise DataError(
            f"no {name}.gz or {name} in {folder}: give the folder that holds the four idx files"
        )
    try:
        content = (
            gzip.decompress(path.read_bytes())
            if path.suffix == ".gz"
            else path.read_bytes()
        )
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    header = 4 + 4 * ndim
    shape = tuple(
        int(n)
        for n in np.frombuffer(content[4:header].ljust(4 * ndim, b"\0"), ">u4")
    )
    if content[:4] != bytes((0, 0, 8, ndim)) or len(content) != header + int(
        np.prod(shape)
    ):
        raise DataError(
            f"{path} is not an idx file of {ndim}-dimensional unsigned bytes"
        )
    return torch.from_numpy(
        np.frombuffer(content, np.uint8, offset=header).copy().reshape(shape)
    )


def loader(
    dataset: TensorDataset, batch_size: int, *, seed: int | None = None
) -> DataLoader[tuple[Tensor, ...]]:
    """Whole batches by one index operation each, which is what makes small networks train fast.

    Args:
        dataset: Tensors in memory.
        batch_size: Samples per batch; the last one may be smaller.
        seed: Shuffle with this seed; ``None`` keeps the order.
    """
    order: RandomSampler | SequentialSampler = SequentialSampler(dataset)
    if seed is not None:
        order = RandomSampler(
            dataset, generator=torch.Generator().manual_seed(seed)
        )
    # batch_size=None hands each list of indices to the data set as it is: no per-sample collation.
    return DataLoader(
        dataset,
        sampler=BatchSampler(order, batch_size, drop_last=False),
        batch_size=None,
    )
