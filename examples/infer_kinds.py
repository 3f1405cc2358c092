"""Which kinds of symmetry a few common architectures have: prints the table of docs/symmetry.md.

Run:  python examples/infer_kinds.py

Expected output (shortened):

    | architecture | groups by kind |
    | ReLU MLP | scale 1 |
"""

from collections import Counter

import torch
from torch import nn

from lightning_rebasin import infer_spec


class LowRank(nn.Module):
    """A dense layer with a LoRA pair beside it."""

    def __init__(self):
        super().__init__()
        self.dense = nn.Linear(6, 5)
        self.a = nn.Linear(6, 3, bias=False)
        self.b = nn.Linear(3, 5, bias=False)

    def forward(self, x):
        """Compute the sum of both paths."""
        return self.dense(x) + self.b(self.a(x))


def mlp(*between):
    """One hidden layer of 9 units with these modules behind it."""
    return nn.Sequential(nn.Linear(6, 9), *between, nn.Linear(9, 4))


def encoder(norm_first):
    """PyTorch's own transformer layer, two heads, with a map in front and a norm and a head behind."""
    layer = nn.TransformerEncoderLayer(
        8, 2, 16, dropout=0.0, norm_first=norm_first, batch_first=True
    )
    return nn.Sequential(
        nn.Linear(6, 8), layer, nn.LayerNorm(8), nn.Linear(8, 4)
    )


class Attention(nn.Module):
    """Packed queries, keys and values, written by hand: two heads of four, turned by positions if asked."""

    def __init__(self, rotary):
        super().__init__()
        self.rotary = rotary
        self.first, self.packed = nn.Linear(6, 8), nn.Linear(8, 24)
        self.out, self.last = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x):
        """Attend and read out, with a pointwise function on both sides."""
        packed = self.packed(torch.tanh(self.first(x)))
        heads = packed.unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        query, key, value = heads.unbind(0)
        if self.rotary:
            query, key = turned(query), turned(key)
        scores = query @ key.mT / 2
        mixed = (scores.softmax(-1) @ value).transpose(1, 2).flatten(-2)
        return self.last(torch.tanh(self.out(mixed)))


def turned(x):
    """Rotary positions; units i and i + 2 of a head are a pair."""
    angles = torch.arange(x.shape[-2])[:, None] * torch.tensor([1.0, 0.1])
    cos, sin = angles.cos(), angles.sin()
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def table():
    """Every architecture, with its name and an input."""
    rows = torch.randn(8, 6)
    images = torch.randn(2, 3, 8, 8)
    sequences = torch.randn(2, 5, 6)
    convolutions = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4)
    )
    yield "ReLU MLP", mlp(nn.ReLU()), rows
    yield "leaky ReLU MLP", mlp(nn.LeakyReLU()), rows
    yield "tanh MLP", mlp(nn.Tanh()), rows
    yield "GELU MLP", mlp(nn.GELU()), rows
    yield (
        "MLP with BatchNorm and ReLU",
        mlp(nn.BatchNorm1d(9), nn.ReLU()),
        rows,
    )
    yield "two linear layers", mlp(), rows
    yield "LoRA pair beside a dense layer", LowRank(), rows
    yield "convolution, ReLU, linear", convolutions, images
    yield "LSTM", nn.LSTM(6, 5, batch_first=True), sequences
    yield "attention, packed", Attention(rotary=False), sequences
    yield "attention, packed, rotary", Attention(rotary=True), sequences
    yield "transformer encoder, pre-LN", encoder(norm_first=True), sequences
    yield "transformer encoder, post-LN", encoder(norm_first=False), sequences


torch.manual_seed(0)
print("| architecture | groups by kind |")
print("|---|---|")
for name, module, example in table():
    spec = infer_spec(module.eval(), example, kinds="all")
    counts = Counter(group.kind for group in spec.groups.values())
    listed = ", ".join(
        f"{kind} {count}" for kind, count in sorted(counts.items())
    )
    print(f"| {name} | {listed or 'none'} |")
