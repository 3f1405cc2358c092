"""The small networks whose files are kept in ``tests/fixtures/old_files``; nothing here may change."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Self-attention with 3 heads of 2 dims on a residual stream of 6."""

    def __init__(self) -> None:
        super().__init__()
        self.i = nn.Linear(4, 6)
        self.qkv = nn.Linear(6, 18)
        self.p = nn.Linear(6, 6)
        self.o = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.i(x)
        q, k, v = (
            part.unflatten(-1, (3, 2)).transpose(1, 2)
            for part in self.qkv(x).chunk(3, -1)
        )
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.o(x + self.p(mixed.transpose(1, 2).flatten(2)))


def mlp() -> nn.Module:
    """4 → 7 → 5 → 2."""
    return nn.Sequential(
        nn.Linear(4, 7),
        nn.ReLU(),
        nn.Linear(7, 5),
        nn.ReLU(),
        nn.Linear(5, 2),
    )


def conv() -> nn.Module:
    """Two convolutions, one with batch norm, a flatten and a linear layer."""
    return nn.Sequential(
        nn.Conv2d(1, 5, 3),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.Conv2d(5, 4, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16, 2),
    )


#: Name of the network: how to build it, and the shape of one sample.
NETWORKS = {
    "mlp": (mlp, (4,)),
    "attention": (Attention, (5, 4)),
    "conv": (conv, (1, 6, 6)),
}


def filled(module: nn.Module, shift: float = 0.0) -> nn.Module:
    """Weights that depend on no random generator: sines of their positions, in eval mode."""
    start = 0.0
    for name, tensor in module.state_dict().items():
        if not tensor.is_floating_point():
            continue
        places = torch.arange(tensor.numel(), dtype=torch.float64) + start
        values = torch.sin(1.7 * places + shift).to(tensor.dtype)
        # a variance is positive
        values = values.abs() + 0.5 if "running_var" in name else values
        tensor.copy_(values.reshape(tensor.shape))
        start += tensor.numel()
    return module.eval()


def sample(shape: tuple[int, ...]) -> Tensor:
    """Three samples."""
    count = 3
    for size in shape:
        count *= size
    return (
        torch.cos(torch.arange(count, dtype=torch.float64))
        .reshape(3, *shape)
        .float()
    )
