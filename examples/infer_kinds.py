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
