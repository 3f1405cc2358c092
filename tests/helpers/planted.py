"""Networks whose planted permutations matching must recover, and textbook tables for plain chains."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_rebasin.symmetry.actions.permutation import Permutation
from lightning_rebasin.symmetry.spec.spec import PermutationSpec


class _TransformerBlock(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = (
            nn.Linear(width, 3 * width),
            nn.Linear(width, width),
        )
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        split = self.qkv(self.norm1(x)).view(
            batch, length, 3, self.heads, width // self.heads
        )
        q, k, v = split.permute(2, 0, 3, 1, 4)
        mixed = (
            F.scaled_dot_product_attention(q, k, v)
            .transpose(1, 2)
            .reshape(batch, length, width)
        )
        x = x + self.out(mixed)
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """Pre-norm transformer with fused QKV; input: tokens ``(batch, up to 8)``."""

    def __init__(
        self,
        width: int = 32,
        heads: int = 4,
        hidden: int = 64,
        layers: int = 4,
        tokens: int = 20,
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(tokens, width)
        self.position = nn.Parameter(0.1 * torch.randn(8, width))
        self.blocks = nn.ModuleList(
            _TransformerBlock(width, heads, hidden) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, tokens)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.position[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class ResidualMLP(nn.Module):
    """One residual stream through many two-layer blocks, hardly anchored at its ends; input ``(batch, 1)``."""

    def __init__(
        self, width: int = 64, hidden: int = 64, layers: int = 16
    ) -> None:
        super().__init__()
        self.first = nn.Linear(1, width, bias=False)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Linear(width, hidden, bias=False),
                nn.ReLU(),
                nn.Linear(hidden, width, bias=False),
            )
            for _ in range(layers)
        )
        self.last = nn.Linear(width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
        return self.last(x)

    def table(self) -> dict[str, tuple[str | None, ...]]:
        """The classical table of its symmetries."""
        table: dict[str, tuple[str | None, ...]] = {
            "first.weight": ("stream", None),
            "last.weight": (None, "stream"),
        }
        for i in range(len(self.blocks)):
            table[f"blocks.{i}.0.weight"] = (f"h{i}", "stream")
            table[f"blocks.{i}.2.weight"] = ("stream", f"h{i}")
        return table


class GroupedResidual(nn.Module):
    """A bottleneck with a grouped convolution (its two channel axes share the groups); input ``(batch, 3, 8, 8)``."""

    def __init__(self, width: int = 16, groups: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.reduce, self.expand = (
            nn.Conv2d(width, width, 1),
            nn.Conv2d(width, width, 1),
        )
        self.grouped = nn.Conv2d(width, width, 3, padding=1, groups=groups)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return self.head(
            (
                x + self.expand(F.relu(self.grouped(F.relu(self.reduce(x)))))
            ).mean((2, 3))
        )


class Recurrent(nn.Module):
    """An LSTM: its hidden units sit on both axes of one weight; input ``(batch, length, 10)``."""

    def __init__(self, hidden: int = 32) -> None:
        super().__init__()
        self.cell = nn.LSTM(10, hidden, batch_first=True)
        self.head = nn.Linear(hidden, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x)[0])


def small_vgg() -> nn.Sequential:
    """Three convolutions with BatchNorm, flatten 64×2×2, two linear layers; input ``(batch, 3, 8, 8)``."""

    def convolution(before: int, after: int) -> list[nn.Module]:
        return [
            nn.Conv2d(before, after, 3, padding=1),
            nn.BatchNorm2d(after),
            nn.ReLU(),
        ]

    layers = [
        *convolution(3, 16),
        nn.MaxPool2d(2),
        *convolution(16, 32),
        nn.MaxPool2d(2),
        *convolution(32, 64),
    ]
    return nn.Sequential(
        *layers, nn.Flatten(), nn.Linear(256, 48), nn.ReLU(), nn.Linear(48, 10)
    )


def chain(
    sizes: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float32
) -> tuple[
    dict[str, tuple[str | None, ...]], dict[str, Tensor], dict[str, Tensor]
]:
    """Table and two random states (weights and biases ~ N/√fan-in) of a multi-layer perceptron."""
    generator = torch.Generator().manual_seed(seed)
    last = len(sizes) - 2
    table: dict[str, tuple[str | None, ...]] = {}
    states: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
    for i, (before, after) in enumerate(itertools.pairwise(sizes)):
        own = f"h{i}" if i < last else None
        table[f"{i}.weight"], table[f"{i}.bias"] = (
            (own, f"h{i - 1}" if i else None),
            (own,),
        )
        for state in states:
            state[f"{i}.weight"] = (
                torch.randn(after, before, generator=generator, dtype=dtype)
                / before**0.5
            )
            state[f"{i}.bias"] = (
                torch.randn(after, generator=generator, dtype=dtype)
                / before**0.5
            )
    return table, *states


def planted_networks(
    count: int, noise: float = 0.0, seed: int = 0
) -> tuple[PermutationSpec, list[dict[str, Tensor]], list[Permutation]]:
    """Permuted copies of one perceptron, each with noise of its own, and the permutations that made them."""
    table, base, _ = chain((10, 30, 20, 5), seed)
    spec = PermutationSpec.from_table(table, base)
    generator = torch.Generator().manual_seed(seed)
    permutations = [Permutation.random(spec, generator) for _ in range(count)]
    states = [
        {
            n: t + noise * t.std() * torch.randn(t.shape, generator=generator)
            for n, t in p.apply(base).items()
        }
        for p in permutations
    ]
    return spec, states, permutations


def joint_objective(
    states: Sequence[Mapping[str, Tensor]],
    permutations: Sequence[Permutation],
    weights: Sequence[float],
) -> float:
    """``Σ_{i<j} w_i w_j ⟨π_i(Θ_i), π_j(Θ_j)⟩`` pair by pair, in float64, over all tensors."""
    moved = [p.apply(s) for p, s in zip(permutations, states, strict=True)]
    total = 0.0
    for i, j in itertools.combinations(range(len(states)), 2):
        for name in states[0]:
            product = moved[i][name].double() * moved[j][name].double()
            total += weights[i] * weights[j] * float(product.sum())
    return total
