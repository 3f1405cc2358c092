"""Checkpoint files that several tests write, read and compare."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from helpers.models import BatchNormCNN, mlp, randomise
from lightning_rebasin.symmetry import Permutation, PermutationSpec

#: Example inputs of :func:`build`'s network.
X = torch.randn(4, 6, generator=torch.Generator().manual_seed(9))


class Planted(NamedTuple):
    """A network in ``a.pt``, and the same network in another order in ``b.pt``: matching must find ``hidden`` again."""

    net: nn.Sequential
    spec: PermutationSpec
    hidden: Permutation


def build() -> nn.Sequential:
    """The network of the planted files."""
    return mlp(6, 12, 10, 3)


def loaded(path: Path) -> Any:
    """What torch's safe loader reads."""
    return torch.load(path, weights_only=True)


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Whether two sets of weights have the same names in the same order and the same numbers."""
    return list(a) == list(b) and all(torch.equal(a[k], b[k]) for k in a)


def batch_norm_files(
    folder: Path,
) -> tuple[BatchNormCNN, list[Tensor], list[Path]]:
    """A network with batch norms, batches for it, and two files of random weights."""
    net = BatchNormCNN(4)
    data = []
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        data.append(torch.randn(16, 3, 8, 8, generator=generator))
    for seed, name in enumerate("ab"):
        torch.save(randomise(net, seed).state_dict(), folder / f"{name}.pt")
    return net, data, [folder / "a.pt", folder / "b.pt"]
