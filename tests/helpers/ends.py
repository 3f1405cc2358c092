"""Data and untrained ends for paths: what a curve or a star does with them is the same as with trained ones."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from helpers.classifier import Classifier, blobs

#: Units of the hidden layer.
HIDDEN = 16


def train_data(batch_size: int = 32) -> DataLoader[tuple[Tensor, ...]]:
    """Six batches unless told otherwise."""
    return DataLoader(blobs(192, 0), batch_size=batch_size)


def held_out() -> DataLoader[tuple[Tensor, ...]]:
    """The last batch is smaller than the others."""
    return DataLoader(blobs(50, 1), batch_size=16)


def states(count: int, **options: Any) -> list[dict[str, Tensor]]:
    """Weights of so many classifiers from their own seeds."""
    found = []
    for seed in range(count):
        torch.manual_seed(seed)
        model = Classifier(hidden=HIDDEN, **options)
        found.append(copy.deepcopy(model.state_dict()))
    return found
