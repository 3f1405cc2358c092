"""Networks trained on the spot, for benchmarks on costs as they really are."""

from __future__ import annotations

import torch
from torch import Tensor

from helpers.data import mnist
from helpers.models import mlp


def trained_mlp(
    seed: int, epochs: int = 8, width: int = 512
) -> dict[str, Tensor]:
    """784-width³-10 on MNIST, Adam 1e-3, batch 500."""
    images, labels = mnist("train")
    images = images.reshape(len(images), -1)
    torch.manual_seed(seed)
    model = mlp(784, width, width, width, 10)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(500):
            loss = torch.nn.functional.cross_entropy(
                model(images[batch]), labels[batch]
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return {
        name: tensor.detach() for name, tensor in model.state_dict().items()
    }


def mlp_table() -> dict[str, tuple[str | None, ...]]:
    """The classical table of :func:`trained_mlp`."""
    table = {}
    for i in range(4):
        own, before = f"h{i}" if i < 3 else None, f"h{i - 1}" if i else None
        table[f"{2 * i}.weight"], table[f"{2 * i}.bias"] = (
            (own, before),
            (own,),
        )
    return table
