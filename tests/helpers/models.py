"""Small networks that many tests share; each is the textbook form of its kind.

The classes whose docstring names a checkpoint have exactly the state-dict keys of that checkpoint (after
:func:`load_weights` has unwrapped it), so that real trained weights load with ``strict=True``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def mlp(*sizes: int, bias: bool = True) -> nn.Sequential:
    """Linear layers with ReLU between them; ``mlp(784, 512, 10)`` has keys ``0.weight``, ``0.bias``, ``2.weight``."""
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after, bias=bias), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def mnist_mlp() -> nn.Sequential:
    """784-400-200-100-10, ReLU, no biases, flattens images; checkpoints/mnist-mlp (keys ``fc1.weight`` ...)."""
    sizes = (784, 400, 200, 100, 10)
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    for i in range(4):
        layers[f"fc{i + 1}"] = nn.Linear(sizes[i], sizes[i + 1], bias=False)
        if i < 3:
            layers[f"relu{i + 1}"] = nn.ReLU()
    return nn.Sequential(layers)


class BatchNormCNN(nn.Module):
    """Two convolutions with BatchNorm, global average, linear; input ``(batch, 3, 8 or more, 8 or more)``."""

    def __init__(self, width: int = 8, classes: int = 5) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(2 * width)
        self.fc = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 2)
        x = F.relu(self.bn2(self.conv2(x)))
        return self.fc(x.mean((2, 3)))


class LeNet(nn.Module):
    """conv 20@5, pool, conv 50@5, pool, flatten 50×4×4, fc 500, fc 10; checkpoints/mnist-lenet."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.fc1 = nn.Linear(800, 500)
        self.fc2 = nn.Linear(500, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


class OptionABlock(nn.Module):
    """Two 3×3 convolutions; the shortcut is a strided slice with zero-padded channels (He et al. 2016, option A)."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.pad = (after - before) // 2
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        shortcut = (
            F.pad(
                x[:, :, :: self.stride, :: self.stride],
                (0, 0, 0, 0, self.pad, self.pad),
            )
            if self.pad
            else x
        )
        return F.relu(out + shortcut)


class ResNet20(nn.Module):
    """CIFAR ResNet-20 with option A shortcuts; checkpoints/cifar10-resnet20 (its keys without ``module.``)."""

    def __init__(self, width: int = 16, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = self._stage(width, width, 1)
        self.layer2 = self._stage(width, 2 * width, 2)
        self.layer3 = self._stage(2 * width, 4 * width, 2)
        self.linear = nn.Linear(4 * width, classes)

    @staticmethod
    def _stage(before: int, after: int, stride: int) -> nn.Sequential:
        return nn.Sequential(
            OptionABlock(before, after, stride),
            OptionABlock(after, after, 1),
            OptionABlock(after, after, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(F.avg_pool2d(x, x.shape[3]).flatten(1))


class _Embed(nn.Module):
    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.W_E = nn.Parameter(torch.randn(tokens, width) / width**0.5)


class _PositionEmbed(nn.Module):
    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.W_pos = nn.Parameter(torch.randn(length, width) / width**0.5)


class _Attention(nn.Module):
    def __init__(
        self, width: int, heads: int, inner: int, length: int
    ) -> None:
        super().__init__()
        for letter in "QKV":
            setattr(
                self,
                f"W_{letter}",
                nn.Parameter(torch.randn(heads, width, inner) / width**0.5),
            )
        self.W_O = nn.Parameter(torch.randn(heads, inner, width) / width**0.5)
        for letter in "QKV":
            setattr(
                self, f"b_{letter}", nn.Parameter(torch.zeros(heads, inner))
            )
        self.b_O = nn.Parameter(torch.zeros(width))
        self.register_buffer(
            "mask", torch.ones(length, length, dtype=torch.bool).tril()
        )
        self.register_buffer("IGNORE", torch.tensor(-1e5))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            torch.einsum("bpm,hmd->bphd", x, getattr(self, f"W_{c}"))
            + getattr(self, f"b_{c}")
            for c in "QKV"
        )
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5
        scores = torch.where(self.mask, scores, self.IGNORE)
        mixed = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v)
        return torch.einsum("bqhd,hdm->bqm", mixed, self.W_O) + self.b_O


class _ReLUMLP(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.W_in = nn.Parameter(torch.randn(width, hidden) / width**0.5)
        self.b_in = nn.Parameter(torch.zeros(hidden))
        self.W_out = nn.Parameter(torch.randn(hidden, width) / hidden**0.5)
        self.b_out = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x @ self.W_in + self.b_in) @ self.W_out + self.b_out


class _Block(nn.Module):
    def __init__(
        self, width: int, heads: int, hidden: int, length: int
    ) -> None:
        super().__init__()
        self.attn = _Attention(width, heads, width // heads, length)
        self.mlp = _ReLUMLP(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(x)
        return x + self.mlp(x)


class _Unembed(nn.Module):
    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.W_U = nn.Parameter(torch.randn(width, classes) / width**0.5)
        self.b_U = nn.Parameter(torch.zeros(classes))


class ModularAdditionTransformer(nn.Module):
    """One layer, d 128, 4 heads, ReLU, no LayerNorm; checkpoints/modular-addition/transformer-*.pt.

    Input: tokens ``(batch, 3)``: a, b and the sign "=" (113).  Output: logits ``(batch, 113)`` of (a + b) mod 113.
    ``x_embed``, ``y_embed`` and ``embed.W_E`` are one tied parameter (equal in both files).
    """

    def __init__(
        self,
        modulus: int = 113,
        width: int = 128,
        heads: int = 4,
        hidden: int = 512,
    ) -> None:
        super().__init__()
        self.embed = _Embed(modulus + 1, width)
        self.x_embed = self.embed.W_E
        self.y_embed = self.embed.W_E
        self.pos_embed = _PositionEmbed(3, width)
        self.blocks = nn.ModuleList([_Block(width, heads, hidden, 3)])
        self.unembed = _Unembed(width, modulus)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed.W_E[tokens] + self.pos_embed.W_pos
        return self.blocks[0](x)[:, -1] @ self.unembed.W_U + self.unembed.b_U


class ModularAdditionMLP(nn.Module):
    """Two embeddings, one hidden layer; checkpoints/modular-addition/mlp-*.pt.  Input: pairs ``(batch, 2)``."""

    def __init__(
        self, modulus: int = 113, width: int = 256, hidden: int = 128
    ) -> None:
        super().__init__()
        self.W_x = nn.Parameter(torch.randn(modulus, width) / width**0.5)
        self.W_y = nn.Parameter(torch.randn(modulus, width) / width**0.5)
        self.W = nn.Parameter(torch.randn(2 * width, hidden) / width**0.5)
        self.W_U = nn.Parameter(torch.randn(hidden, modulus) / hidden**0.5)

    def forward(self, pairs: Tensor) -> Tensor:
        x = torch.cat([self.W_x[pairs[:, 0]], self.W_y[pairs[:, 1]]], 1)
        return F.relu(x @ self.W) @ self.W_U


def modular_addition_pairs(modulus: int = 113) -> tuple[Tensor, Tensor]:
    """All pairs ``(modulus², 2)`` and their sums."""
    pairs = torch.cartesian_prod(torch.arange(modulus), torch.arange(modulus))
    return pairs, pairs.sum(1) % modulus


def modular_addition_tokens(modulus: int = 113) -> tuple[Tensor, Tensor]:
    """All token triples ``(modulus², 3)`` for the transformer and their sums."""
    pairs, sums = modular_addition_pairs(modulus)
    return torch.cat([pairs, torch.full((len(pairs), 1), modulus)], 1), sums


def load_weights(path: Path) -> dict[str, Tensor]:
    """The bare state dict of a shared checkpoint, wrapper keys and a ``module.`` prefix removed.

    ``cifar10-resnet20/a.th`` predates ``num_batches_tracked``: load it into a module and take the state dict of that.
    """
    payload = torch.load(path, map_location="cpu", weights_only=True)
    for key in ("state_dict", "model_state_dict"):
        payload = payload.get(key, payload)
    return {
        name.removeprefix("module."): tensor
        for name, tensor in payload.items()
    }


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter and BatchNorm statistic a random, non-degenerate value; in place, eval mode."""
    generator = torch.Generator().manual_seed(seed)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=like.dtype)

    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:
                parameter.copy_(
                    1.2 * noise(parameter) / parameter[0].numel() ** 0.5
                )
            else:
                parameter.add_(0.2 * noise(parameter))
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.1 * noise(buffer))
            elif name.endswith("running_var"):
                buffer.copy_(1.0 + 0.3 * noise(buffer).clamp(-2, 2))
    return module.eval()


def accuracy(
    module: nn.Module, inputs: Tensor, labels: Tensor, batch: int = 1000
) -> float:
    """Fraction of right answers, in eval mode."""
    module.eval()
    with torch.no_grad():
        right: Sequence[int] = [
            int((module(x).argmax(1) == y).sum())
            for x, y in zip(
                inputs.split(batch), labels.split(batch), strict=True
            )
        ]
    return sum(right) / len(labels)
