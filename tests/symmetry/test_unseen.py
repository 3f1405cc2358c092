"""Architectures written after the rules: each inferred, exact under a random permutation, with a control that moves.

Each case says the least that must be found, worked out by hand from the architecture.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from helpers.models import randomise
from torch import nn

from lightning_rebasin.symmetry import (
    Permutation,
    infer_spec,
    measure_equivalence,
)

CASES = {}


def case(*inputs, least):
    """Register a class with its example input shapes and the groups (size, instances) that must at least be there."""

    def register(cls):
        CASES[cls.__name__] = (cls, inputs, least)
        return cls

    return register


def image(*shape):
    return lambda: torch.randn(
        *shape, generator=torch.Generator().manual_seed(1)
    )


def tokens(high, *shape):
    return lambda: torch.randint(
        0, high, shape, generator=torch.Generator().manual_seed(1)
    )


def log10(*groups):
    return sum(
        times * math.lgamma(size + 1) / math.log(10) for size, times in groups
    )


def conv(before, after, kernel=3):
    return nn.Conv2d(before, after, kernel, padding=kernel // 2)


@case(image(1, 3, 16, 16), least=[(6, 1), (10, 1), (14, 1), (8, 1), (7, 1)])
class UNet(nn.Module):
    """Skip connections by concatenation, transposed convolution, bilinear upsampling."""

    def __init__(self):
        super().__init__()
        self.down1, self.down2, self.middle = (
            conv(3, 6),
            conv(6, 10),
            conv(10, 14),
        )
        self.up1 = nn.ConvTranspose2d(14, 8, 2, 2)
        self.join1, self.out = conv(18, 7), conv(13, 2, 1)

    def forward(self, x):
        a = F.relu(self.down1(x))
        b = F.relu(self.down2(F.max_pool2d(a, 2)))
        c = F.relu(self.middle(F.max_pool2d(b, 2)))
        d = F.relu(self.join1(torch.cat([self.up1(c), b], 1)))
        return self.out(
            torch.cat(
                [
                    F.interpolate(
                        d, scale_factor=2, mode="bilinear", align_corners=False
                    ),
                    a,
                ],
                1,
            )
        )


@case(image(1, 3, 8, 8), least=[(6, 1), (4, 3), (12, 3)])
class DenseNet(nn.Module):
    """Every layer reads the concatenation of all before it, through BatchNorm and a bottleneck."""

    def __init__(self):
        super().__init__()
        self.stem, width = conv(3, 6), 6
        self.layers = nn.ModuleList()
        for _ in range(3):
            self.layers.append(
                nn.Sequential(
                    nn.BatchNorm2d(width),
                    nn.ReLU(),
                    nn.Conv2d(width, 12, 1, bias=False),
                    nn.BatchNorm2d(12),
                    nn.ReLU(),
                    conv(12, 4),
                )
            )
            width += 4
        self.norm, self.head = nn.BatchNorm2d(width), nn.Linear(width, 5)

    def forward(self, x):
        features = [self.stem(x)]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        return self.head(
            F.relu(self.norm(torch.cat(features, 1))).mean((2, 3))
        )


@case(image(1, 3, 8, 8), least=[(4, 1), (5, 2), (6, 3), (3, 1)])
class Inception(nn.Module):
    """Parallel branches of different kernels, concatenated, then flattened into a linear layer."""

    def __init__(self):
        super().__init__()
        self.one = conv(3, 4, 1)
        self.three = nn.Sequential(conv(3, 5, 1), nn.ReLU(), conv(5, 6, 3))
        self.five = nn.Sequential(conv(3, 5, 1), nn.ReLU(), conv(5, 6, 5))
        self.pool = conv(3, 3, 1)
        self.mix, self.head = conv(19, 6, 1), nn.Linear(6 * 64, 4)

    def forward(self, x):
        branches = [
            self.one(x),
            self.three(x),
            self.five(x),
            self.pool(F.max_pool2d(x, 3, 1, 1)),
        ]
        return self.head(
            F.relu(self.mix(F.relu(torch.cat(branches, 1)))).flatten(1)
        )


@case(image(6, 5), least=[(8, 1), (3, 1), (7, 3)])
class SoftMixture(nn.Module):
    """Stacked expert tensors behind a soft router: experts, and the hidden units inside each expert."""

    def __init__(self):
        super().__init__()
        self.stem, self.router = nn.Linear(5, 8), nn.Linear(8, 3)
        self.w1, self.w2 = (
            nn.Parameter(torch.randn(3, 8, 7)),
            nn.Parameter(torch.randn(3, 7, 2)),
        )

    def forward(self, x):
        x = F.relu(self.stem(x))
        hidden = F.gelu(torch.einsum("bi,eih->beh", x, self.w1))
        return torch.einsum(
            "be,beh,eho->bo", self.router(x).softmax(-1), hidden, self.w2
        )


@case(image(9, 5), least=[(8, 1), (7, 4)])
class TopKMixture(nn.Module):
    """Separate experts, the two best of four by a router: the units inside each expert."""

    def __init__(self):
        super().__init__()
        self.stem, self.router = nn.Linear(5, 8), nn.Linear(8, 4)
        self.experts = nn.ModuleList(
            [
                nn.Sequential(nn.Linear(8, 7), nn.SiLU(), nn.Linear(7, 8))
                for _ in range(4)
            ]
        )
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.stem(x)
        weights, chosen = self.router(x).softmax(-1).topk(2, -1)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            row, place = torch.where(chosen == number)
            out.index_add_(0, row, expert(x[row]) * weights[row, place, None])
        return self.head(x + out)


@case(tokens(11, 2, 5), least=[(16, 1), (20, 1), (4, 2), (2, 2), (2, 1)])
class GroupedQueryRoPE(nn.Module):
    """4 query heads on 2 key heads, rotary positions, RMSNorm, gated MLP: value units per key head, heads, stream."""

    def __init__(self):
        super().__init__()
        self.embed, self.n1, self.n2 = (
            nn.Embedding(11, 16),
            nn.RMSNorm(16),
            nn.RMSNorm(16),
        )
        self.q, self.k, self.v = (
            nn.Linear(16, 16, bias=False),
            nn.Linear(16, 8, bias=False),
            nn.Linear(16, 8, bias=False),
        )
        self.o = nn.Linear(16, 16, bias=False)
        self.gate, self.up, self.down = (
            nn.Linear(16, 20),
            nn.Linear(16, 20),
            nn.Linear(20, 16),
        )
        self.head = nn.Linear(16, 11)

    @staticmethod
    def rotate(x):
        angle = (
            torch.arange(x.shape[2]).double()[:, None]
            * 10.0 ** -torch.arange(2).double()
        )
        cos, sin = (
            angle.cos().to(x.dtype).repeat(1, 2),
            angle.sin().to(x.dtype).repeat(1, 2),
        )
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat([-second, first], -1) * sin

    def forward(self, ids):
        x = self.embed(ids)
        h = self.n1(x)
        q, k, v = (
            w(h).unflatten(-1, (-1, 4)).transpose(1, 2)
            for w in (self.q, self.k, self.v)
        )
        k, v = (
            self.rotate(k).repeat_interleave(2, 1),
            v.repeat_interleave(2, 1),
        )
        y = F.scaled_dot_product_attention(
            self.rotate(q), k, v, is_causal=True
        )
        x = x + self.o(y.transpose(1, 2).flatten(2))
        h = self.n2(x)
        return self.head(x + self.down(F.silu(self.gate(h)) * self.up(h)))


@case(tokens(11, 2, 6), least=[(12, 1), (3, 1), (4, 6)])
class RelativeBias(nn.Module):
    """T5-like attention: a learned bias per head and distance moves with the heads."""

    def __init__(self):
        super().__init__()
        self.embed, self.bias = nn.Embedding(11, 12), nn.Embedding(11, 3)
        self.q, self.k, self.v, self.o = (
            nn.Linear(12, 12, bias=False) for _ in range(4)
        )
        self.head = nn.Linear(12, 2)

    def forward(self, ids):
        x = self.embed(ids)
        q, k, v = (
            w(x).unflatten(-1, (3, 4)).transpose(1, 2)
            for w in (self.q, self.k, self.v)
        )
        place = torch.arange(ids.shape[1])
        bias = self.bias(place[:, None] - place[None] + 5).permute(2, 0, 1)
        y = ((q @ k.mT + bias).softmax(-1) @ v).transpose(1, 2).flatten(2)
        return self.head((x + self.o(y)).amax(1))


@case(image(2, 5, 4), least=[(6, 1), (10, 1), (3, 1)])
class SelectiveScan(nn.Module):
    """Mamba-like: input-dependent step and state matrices, depthwise causal convolution, a loop over time."""

    def __init__(self):
        super().__init__()
        self.stem, self.inner, self.gate = (
            nn.Linear(4, 6),
            nn.Linear(6, 10),
            nn.Linear(6, 10),
        )
        self.conv = nn.Conv1d(10, 10, 3, padding=2, groups=10)
        self.dt, self.b, self.c = (
            nn.Linear(10, 10),
            nn.Linear(10, 3),
            nn.Linear(10, 3),
        )
        self.a, self.d, self.out = (
            nn.Parameter(torch.randn(10, 3)),
            nn.Parameter(torch.randn(10)),
            nn.Linear(10, 6),
        )
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        x = self.stem(x)
        u = F.silu(self.conv(self.inner(x).mT)[..., : x.shape[1]].mT)
        dt, b, c = F.softplus(self.dt(u)), self.b(u), self.c(u)
        state, outs = u.new_zeros(u.shape[0], 10, 3), []
        for t in range(u.shape[1]):
            decay = torch.exp(-dt[:, t, :, None] * self.a.exp())
            state = (
                decay * state + (dt[:, t] * u[:, t])[..., None] * b[:, t, None]
            )
            outs.append((state * c[:, t, None]).sum(-1) + self.d * u[:, t])
        return self.head(
            x + self.out(torch.stack(outs, 1) * F.silu(self.gate(x)))
        )


@case(image(2, 6, 5), least=[(8, 1), (2, 1), (3, 4), (8, 1)])
class LinearAttention(nn.Module):
    """Kernel feature maps instead of softmax; keys and values are summed over time first."""

    def __init__(self):
        super().__init__()
        self.stem, self.qkv, self.o, self.head = (
            nn.Linear(5, 8),
            nn.Linear(8, 18),
            nn.Linear(6, 8),
            nn.Linear(8, 2),
        )
        self.mlp = nn.Linear(8, 8)

    def forward(self, x):
        x = self.stem(x)
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 3)).permute(2, 0, 3, 1, 4)
        q, k = F.elu(q) + 1, F.elu(k) + 1
        total = torch.einsum("bhtd,bhte->bhde", k, v)
        y = (
            torch.einsum("bhtd,bhde->bhte", q, total)
            / torch.einsum("bhtd,bhd->bht", q, k.sum(2))[..., None]
        )
        return self.head(
            F.relu(self.mlp(x + self.o(y.transpose(1, 2).flatten(2))))
        )


@case(image(2, 4, 3, 6, 6), least=[(5, 1)])
class ConvLSTM(nn.Module):
    """Gates from one convolution of input and state; all four gates move alike."""

    def __init__(self):
        super().__init__()
        self.gates, self.head = conv(3 + 5, 20), nn.Linear(5, 2)

    def forward(self, x):
        h = c = x.new_zeros(x.shape[0], 5, *x.shape[-2:])
        for t in range(x.shape[1]):
            i, f, g, o = self.gates(torch.cat([x[:, t], h], 1)).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        return self.head(h.mean((2, 3)))


@case(image(4, 5), least=[(9, 1), (7, 1)])
class WeightNorm(nn.Module):
    """Weights made of a direction and a length."""

    def __init__(self):
        super().__init__()
        norm = nn.utils.parametrizations.weight_norm
        self.net = nn.Sequential(
            norm(nn.Linear(5, 9)),
            nn.ReLU(),
            norm(nn.Linear(9, 7)),
            nn.ReLU(),
            norm(nn.Linear(7, 2)),
        )

    def forward(self, x):
        return self.net(x)


@case(image(4, 5), least=[])
class SpectralNorm(nn.Module):
    """Weights divided by a norm that is estimated with two stored vectors."""

    def __init__(self):
        super().__init__()
        norm = nn.utils.parametrizations.spectral_norm
        self.net = nn.Sequential(
            norm(nn.Linear(5, 9)),
            nn.ReLU(),
            nn.Linear(9, 7),
            nn.ReLU(),
            nn.Linear(7, 2),
        )

    def forward(self, x):
        return self.net(x)


@case(image(3, 5), image(3, 5), least=[(9, 1), (6, 1)])
class Siamese(nn.Module):
    """One tower for two inputs, compared by an absolute difference and a product."""

    def __init__(self):
        super().__init__()
        self.tower, self.head = (
            nn.Sequential(nn.Linear(5, 9), nn.Tanh(), nn.Linear(9, 6)),
            nn.Linear(12, 1),
        )

    def forward(self, a, b):
        a, b = self.tower(a), self.tower(2 * b)
        return self.head(
            torch.cat([(a - b).abs(), a * b], 1)
        ), F.cosine_similarity(a, b, 1)


@case(image(4, 7), least=[(6, 1), (4, 1)])
class TiedAutoencoder(nn.Module):
    """The decoder uses the transposed weights of the encoder."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(7, 6), nn.Linear(6, 4)
        self.bias = nn.Parameter(torch.randn(6))

    def forward(self, x):
        code = torch.sigmoid(self.second(torch.sigmoid(self.first(x))))
        return F.linear(
            torch.sigmoid(F.linear(code, self.second.weight.T, self.bias)),
            self.first.weight.T,
        )


@case(image(2, 3, 6, 6), image(2, 4), least=[(8, 1), (5, 1), (6, 1)])
class FiLM(nn.Module):
    """A second network scales and shifts the channels of the first."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = conv(3, 8), nn.BatchNorm2d(8, affine=False)
        self.conditioner = nn.Sequential(
            nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 16)
        )
        self.last, self.head = conv(8, 6), nn.Linear(6, 2)

    def forward(self, x, z):
        scale, shift = self.conditioner(z)[:, :, None, None].chunk(2, 1)
        return self.head(
            F.relu(
                self.last(
                    F.relu(self.norm(self.stem(x)) * (1 + scale) + shift)
                )
            ).amax((2, 3))
        )


@case(image(6, 4), tokens(6, 2, 14), least=[(3, 1), (5, 3)])
class GraphAttention(nn.Module):
    """Attention over edges with a scatter softmax: heads and the units inside each of them."""

    def __init__(self):
        super().__init__()
        self.w, self.head = nn.Linear(4, 15, bias=False), nn.Linear(15, 2)
        self.left, self.right = (
            nn.Parameter(torch.randn(3, 5)),
            nn.Parameter(torch.randn(3, 5)),
        )

    def forward(self, x, edges):
        h = self.w(x).view(-1, 3, 5)
        score = F.leaky_relu(
            (h * self.left).sum(-1)[edges[0]]
            + (h * self.right).sum(-1)[edges[1]],
            0.2,
        ).exp()
        total = torch.zeros(len(x), 3, dtype=x.dtype).index_add(
            0, edges[1], score
        )
        message = h[edges[0]] * (score / (total[edges[1]] + 1e-9))[..., None]
        return self.head(
            F.elu(
                torch.zeros_like(h).index_add(0, edges[1], message).flatten(1)
            )
        )


@case(image(4, 5), least=[(6, 1), (2, 6)])
class Maxout(nn.Module):
    """The largest of each block of two: blocks, and the pieces inside each block."""

    def __init__(self):
        super().__init__()
        self.pieces, self.head = nn.Linear(5, 12), nn.Linear(6, 2)

    def forward(self, x):
        return self.head(self.pieces(x).view(-1, 6, 2).amax(-1))


@case(image(4, 5), least=[(8, 1)])
class Highway(nn.Module):
    """A gated residual stream."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Linear(5, 8), nn.Linear(8, 2)
        self.layers = nn.ModuleList([nn.Linear(8, 16) for _ in range(2)])

    def forward(self, x):
        x = self.stem(x)
        for layer in self.layers:
            gate, value = layer(x).split(8, -1)
            x = torch.lerp(x, value.tanh(), gate.sigmoid())
        return self.head(x)


@case(image(2, 1, 6, 6), least=[(6, 1), (5, 1)])
class PixelCNN(nn.Module):
    """Convolution weights multiplied by a fixed mask."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = conv(1, 6), conv(6, 5), conv(5, 2, 1)
        mask = torch.ones(3, 3)
        mask[1, 2] = mask[2] = 0
        self.register_buffer("mask", mask)

    def forward(self, x):
        for layer in (self.a, self.b):
            x = F.relu(
                F.conv2d(x, layer.weight * self.mask, layer.bias, padding=1)
            )
        return self.head(x)


@case(image(2, 5, 12), least=[(24, 1), (3, 1), (4, 6)])
class EncoderLayer(nn.Module):
    """nn.TransformerEncoderLayer in eval mode, where torch takes a fused fast path; its stream is normalised."""

    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(12, 3, 24, batch_first=True)
        self.head = nn.Linear(12, 2)

    def forward(self, x):
        return self.head(self.layer(x).mean(1))


@case(image(3, 5), image(3, 4), least=[(7, 1)])
class Bilinear(nn.Module):
    """A three-way product of two inputs and a weight."""

    def __init__(self):
        super().__init__()
        self.a, self.product, self.head = (
            nn.Linear(5, 6),
            nn.Bilinear(6, 4, 7),
            nn.Linear(7, 2),
        )

    def forward(self, x, y):
        return self.head(torch.tanh(self.product(torch.tanh(self.a(x)), y)))


@case(tokens(9, 2, 6), least=[(10, 1), (14, 1)])
class TiedLanguageModel(nn.Module):
    """The output layer is the embedding; a GRU between them."""

    def __init__(self):
        super().__init__()
        self.embed, self.rnn, self.back = (
            nn.Embedding(9, 10),
            nn.GRU(10, 14, batch_first=True),
            nn.Linear(14, 10),
        )
        self.out = nn.Linear(10, 9, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, ids):
        return self.out(self.back(self.rnn(self.embed(ids))[0]))


@case(image(4, 5), least=[(7, 1)])
class SplineNetwork(nn.Module):
    """KAN-like: every edge is a learned function on a grid of Gaussian bumps."""

    def __init__(self):
        super().__init__()
        self.register_buffer("grid", torch.linspace(-2, 2, 6))
        self.first, self.second = (
            nn.Parameter(torch.randn(7, 5, 6)),
            nn.Parameter(torch.randn(2, 7, 6)),
        )
        self.base = nn.Linear(5, 7)

    def forward(self, x):
        bumps = lambda z: torch.exp(-((z[..., None] - self.grid) ** 2))
        h = torch.einsum("big,oig->bo", bumps(x), self.first) + F.silu(
            self.base(x)
        )
        return torch.einsum("big,oig->bo", bumps(h), self.second)


@case(image(2, 5, 8), least=[(6, 1)])
class FourierMixer(nn.Module):
    """A Fourier transform over time with a learned complex filter; channels may move, frequencies may not."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Linear(8, 6), nn.Linear(6, 2)
        self.filter = nn.Parameter(torch.randn(3, 6, 2))

    def forward(self, x):
        h = torch.fft.rfft(self.stem(x), dim=1) * torch.view_as_complex(
            self.filter
        )
        return self.head(
            torch.fft.irfft(h, n=x.shape[1], dim=1).relu().amax(1)
        )


@case(image(3, 8), least=[(5, 1)])
class FourierOverUnits(nn.Module):
    """A Fourier transform over the units themselves: those must not move, the layer after it may."""

    def __init__(self):
        super().__init__()
        self.stem, self.after, self.head = (
            nn.Linear(8, 6),
            nn.Linear(6, 5),
            nn.Linear(5, 2),
        )

    def forward(self, x):
        return self.head(
            torch.relu(self.after(torch.fft.fft(self.stem(x)).real))
        )


@case(image(3, 8), least=[(10, 1)])
class SortedUnits(nn.Module):
    """Units sorted by value: any order of them gives the same sorted values, the layer after reads positions."""

    def __init__(self):
        super().__init__()
        self.stem, self.after, self.head = (
            nn.Linear(8, 6),
            nn.Linear(6, 10),
            nn.Linear(10, 2),
        )

    def forward(self, x):
        return self.head(torch.relu(self.after(self.stem(x).sort(-1).values)))


@case(image(1, 4, 8, 8), least=[(6, 1), (5, 1)])
class SpatialTransformer(nn.Module):
    """A grid sampled by a predicted affine map."""

    def __init__(self):
        super().__init__()
        self.stem, self.locate, self.head = (
            conv(4, 6),
            nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 6)),
            conv(6, 2),
        )

    def forward(self, x):
        h = F.relu(self.stem(x))
        theta = 0.3 * self.locate(h.mean((2, 3))).view(-1, 2, 3)
        return self.head(
            F.grid_sample(
                h,
                F.affine_grid(theta, list(h.shape), align_corners=False),
                align_corners=False,
            )
        )


@case(image(2, 6, 6), least=[(12, 1), (9, 1)])
class SetTransformerPooling(nn.Module):
    """Attention pooling by a learned seed, then a residual block with pre-norm and layer scale."""

    def __init__(self):
        super().__init__()
        self.stem, self.seed, self.norm = (
            nn.Linear(6, 12),
            nn.Parameter(torch.randn(1, 1, 12)),
            nn.LayerNorm(12),
        )
        self.up, self.down, self.scale = (
            nn.Linear(12, 9),
            nn.Linear(9, 12),
            nn.Parameter(torch.randn(12)),
        )
        self.head = nn.Linear(12, 3)

    def forward(self, x):
        x = self.stem(x)
        pooled = ((self.seed @ x.mT) / 12**0.5).softmax(-1) @ x
        pooled = pooled + self.scale * self.down(
            F.gelu(self.up(self.norm(pooled)))
        )
        return self.head(pooled.squeeze(1))


@case(image(2, 3, 9), least=[(8, 1), (5, 1)])
class TemporalConvolution(nn.Module):
    """Dilated causal convolutions with gated activations and skip sums (WaveNet-like)."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv1d(3, 8, 1)
        self.filters = nn.ModuleList(
            [nn.Conv1d(8, 10, 2, dilation=2**i) for i in range(2)]
        )
        self.mixes = nn.ModuleList([nn.Conv1d(5, 8, 1) for _ in range(2)])
        self.head = nn.Conv1d(8, 2, 1)

    def forward(self, x):
        x = self.stem(x)
        skips = 0
        for i, (gated, mix) in enumerate(
            zip(self.filters, self.mixes, strict=True)
        ):
            a, b = gated(F.pad(x, (2**i, 0))).chunk(2, 1)
            y = mix(a.tanh() * b.sigmoid())
            x, skips = x + y, skips + y
        return self.head(F.relu(skips))


@pytest.mark.filterwarnings("ignore::lightning_rebasin.errors.UntracedWarning")
@pytest.mark.parametrize("name", CASES)
def test_unseen_architecture(name):
    build, inputs, least = CASES[name]
    torch.manual_seed(0)
    module = randomise(build())
    example = [make() for make in inputs]
    spec = infer_spec(module, *example)
    permutation = Permutation.random(spec, torch.Generator().manual_seed(0))
    measured = measure_equivalence(module, permutation, *example)
    assert measured.error < 1e-10, spec
    assert measured.control > 1e-4 or not spec.groups, spec
    assert spec.log10_symmetries >= log10(*least) - 1e-6, spec


@pytest.mark.parametrize(
    ("name", "pinned"),
    [
        ("FourierOverUnits", [("stem.weight", 0), ("after.weight", 1)]),
        ("SortedUnits", [("after.weight", 1)]),
        ("PixelCNN", [("mask", 0), ("a.weight", 2)]),
        ("TopKMixture", [("router.weight", 0)]),
        ("FourierMixer", [("filter", 0), ("filter", 2)]),
        ("SplineNetwork", [("grid", 0), ("first", 1), ("first", 2)]),
    ],
)
@pytest.mark.filterwarnings("ignore::lightning_rebasin.errors.UntracedWarning")
def test_what_must_not_move_does_not(name, pinned):
    build, inputs, _ = CASES[name]
    module = randomise(build())
    # a table that is a buffer may move in one model, but not where two models share it
    spec = infer_spec(module, *(make() for make in inputs))
    spec = spec.pin_identical_buffers(module.state_dict(), module.state_dict())
    for tensor, dim in pinned:
        axis_map = spec.maps.get(tensor)
        assert axis_map is None or all(
            dim not in axis_map.dims_of(c.group) for c in axis_map.components
        )
