"""Small networks whose symmetries are more than permutations, in float64, with an input each."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

WIDTH, HEADS, LENGTH, VOCABULARY = 8, 2, 5, 11


class _RMSNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return (
            x
            * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
            * self.weight
        )


def _turned(x: Tensor) -> Tensor:
    """Rotary positions: plane i is spanned by the components i and i + half."""
    half = x.shape[-1] // 2
    rates = 10.0 ** -torch.arange(half, dtype=x.dtype)
    angles = torch.arange(x.shape[-2], dtype=x.dtype)[:, None] * rates
    cos, sin = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)
    rotated = torch.cat([-x[..., half:], x[..., :half]], -1)
    return x * cos + rotated * sin


@final
class Block(nn.Module):
    """Attention and an MLP, each behind a norm, added to the stream."""

    def __init__(self, rotary: bool) -> None:
        super().__init__()
        self.rotary = rotary
        self.norm1 = _RMSNorm() if rotary else nn.LayerNorm(WIDTH)
        self.norm2 = _RMSNorm() if rotary else nn.LayerNorm(WIDTH)
        self.query = nn.Linear(WIDTH, WIDTH)
        self.key = nn.Linear(WIDTH, WIDTH)
        self.value = nn.Linear(WIDTH, WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.up = nn.Linear(WIDTH, 12)
        self.down = nn.Linear(12, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        split = [
            layer(y).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        ]
        q, k, v = split
        if self.rotary:
            q, k = _turned(q), _turned(k)
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).flatten(-2)
        x = x + self.out(mixed)
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


@final
class Transformer(nn.Module):
    """Token ids ``(batch, length)`` to logits, the head untied."""

    def __init__(self, rotary: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.block = Block(rotary)
        self.norm = _RMSNorm() if rotary else nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.norm(self.block(self.embed(tokens))))


@final
class LowRank(nn.Module):
    """A dense layer with a LoRA pair beside it: ``W x + B A x``."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(6, 5)
        self.a = nn.Linear(6, 3, bias=False)
        self.b = nn.Linear(3, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(x) + self.b(self.a(x))


def networks(name: str, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """One of the networks with random weights, and a batch for it."""
    torch.manual_seed(seed)
    tokens = torch.randint(VOCABULARY, (16, LENGTH))
    rows = torch.randn(64, 6, dtype=torch.float64)
    made: dict[str, tuple[nn.Module, Tensor]] = {
        "layer norm": (Transformer(), tokens),
        "rotary": (Transformer(rotary=True), tokens),
        "relu": (
            nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 4)),
            rows,
        ),
        "tanh": (
            nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 4)),
            rows,
        ),
        "low rank": (LowRank(), rows),
    }
    module, batch = made[name]
    return module.double().eval(), batch
