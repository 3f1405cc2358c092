"""Images of the shared folder as tensors; tests skip where it is absent.

Normalisations that reproduce the accuracies of the shared checkpoints are in :data:`NORMALISATION`.
"""

from __future__ import annotations

import csv
import gzip
import lzma
from functools import lru_cache
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers.shared import shared_path

Split = Literal["train", "test"]
#: checkpoint folder → (mean, std) per channel, applied to pixels in [0, 1].
NORMALISATION: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "mnist-mlp": ((0.1307,), (0.3081,)),
    "mnist-lenet": ((0.1307,), (0.3081,)),
    "cifar10-resnet20": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


def _idx(name: str, header: int) -> Tensor:
    path = shared_path(f"data/{name}")
    with gzip.open(path) as file:
        return torch.from_numpy(
            np.frombuffer(file.read(), np.uint8, offset=header).copy()
        )


@lru_cache(maxsize=4)
def mnist(split: Split, name: str = "mnist") -> tuple[Tensor, Tensor]:
    """Images float32 ``(n, 1, 28, 28)`` in [0, 1] and labels int64 ``(n,)``; ``name`` may be ``fashion-mnist``."""
    stem = {"train": "train", "test": "t10k"}[split]
    images = _idx(f"{name}/{stem}-images-idx3-ubyte.gz", 16).reshape(
        -1, 1, 28, 28
    )
    return images.float() / 255, _idx(
        f"{name}/{stem}-labels-idx1-ubyte.gz", 8
    ).long()


@lru_cache(maxsize=2)
def cifar10(split: Split, limit: int | None = None) -> tuple[Tensor, Tensor]:
    """Images float32 ``(n, 3, 32, 32)`` in [0, 1] and labels int64 ``(n,)``; the first ``limit`` of them.

    Train images are JPEG of quality 95, test images lossless WebP; both need Pillow.
    """
    folder = shared_path("data/cifar10")
    image = pytest.importorskip(
        "PIL.Image", reason="reading CIFAR-10 needs Pillow"
    )
    sheets = []
    for sheet in sorted(
        (
            folder / {"train": "train-jpeg95", "test": "test-lossless"}[split]
        ).iterdir()
    ):
        if limit is not None and 500 * len(sheets) >= limit:
            break
        pixels = np.asarray(image.open(sheet).convert("RGB"))
        if pixels.shape == (16000, 32, 3):
            sheets.append(pixels.reshape(500, 32, 32, 3))
        else:
            sheets.append(
                pixels.reshape(25, 32, 20, 32, 3)
                .transpose(0, 2, 1, 3, 4)
                .reshape(500, 32, 32, 3)
            )
    with lzma.open(folder / "index.csv.xz", "rt") as file:
        labels = [
            int(row["label"])
            for row in csv.DictReader(file)
            if row["split"] == split
        ]
    images = (
        torch.from_numpy(np.concatenate(sheets)[:limit])
        .permute(0, 3, 1, 2)
        .float()
        / 255
    )
    return images.contiguous(), torch.tensor(labels[:limit])


def normalise(images: Tensor, checkpoint: str) -> Tensor:
    """Normalise images as the networks of a checkpoint folder expect them."""
    mean, std = (
        torch.tensor(v)[:, None, None] for v in NORMALISATION[checkpoint]
    )
    return (images - mean) / std
