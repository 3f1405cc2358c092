"""Two networks with tables that say by hand which axes carry the same units."""

from __future__ import annotations

import torch
from torch import Tensor

from helpers.algebra import randomly
from helpers.models import BatchNormCNN, randomise
from lightning_rebasin.symmetry import Permutation, PermutationSpec

#: For every tensor, the group of each of its axes.
Table = dict[str, tuple[str | None, ...]]


CNN_TABLE: Table = {
    "conv1.weight": ("a", None, None, None),
    "bn1.weight": ("a",),
    "bn1.bias": ("a",),
    "bn1.running_mean": ("a",),
    "bn1.running_var": ("a",),
    "conv2.weight": ("b", "a", None, None),
    "bn2.weight": ("b",),
    "bn2.bias": ("b",),
    "bn2.running_mean": ("b",),
    "bn2.running_var": ("b",),
    "fc.weight": (None, "b"),
}


MLP_TABLE: Table = {
    "0.weight": ("h", None),
    "0.bias": ("h",),
    "2.weight": (None, "h"),
}


def cnn(
    table: Table = CNN_TABLE, seed: int = 0
) -> tuple[BatchNormCNN, Permutation]:
    """A network with random weights and a random permutation of what the table says."""
    module = BatchNormCNN()
    randomise(module, seed)
    spec = PermutationSpec.from_table(table, module.state_dict())
    return module, randomly(spec)


def images(n: int = 2) -> Tensor:
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(7))


def without(*names: str) -> Table:
    """The table of the CNN without some tensors."""
    return {
        name: axes for name, axes in CNN_TABLE.items() if name not in names
    }
