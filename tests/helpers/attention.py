"""One attention between two linear layers, in the forms that networks are written in."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.proofs import largest_error
from lightning_rebasin import infer_spec
from lightning_rebasin.symmetry import PermutationSpec

WIDTH, INPUTS, OUTPUTS = 12, 5, 3


def angles(x: Tensor, count: int) -> Tensor:
    """An angle for each position and pair."""
    rates = 10.0 ** -torch.arange(count, dtype=x.dtype)
    return torch.arange(x.shape[-2], dtype=x.dtype)[:, None] * rates


def halves(x: Tensor) -> Tensor:
    """Pairs (i, i + half), piece by piece."""
    half = x.shape[-1] // 2
    cos, sin = angles(x, half).cos(), angles(x, half).sin()
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def rotate_half(x: Tensor) -> Tensor:
    """Pairs (i, i + half), as Hugging Face writes it; an odd width is turned as well, but not in pairs."""
    half = x.shape[-1] // 2
    both = angles(x, half).repeat(1, 2)
    if x.shape[-1] % 2:
        both = angles(x, x.shape[-1])
    turned = torch.cat([-x[..., half:], x[..., :half]], -1)
    return x * both.cos() + turned * both.sin()


def neighbours(x: Tensor) -> Tensor:
    """Pairs (2i, 2i + 1)."""
    cos, sin = (f(angles(x, x.shape[-1] // 2)) for f in (torch.cos, torch.sin))
    a, b = x[..., ::2], x[..., 1::2]
    return torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)


def complex_numbers(x: Tensor) -> Tensor:
    """Pairs (2i, 2i + 1), as the first Llama writes it."""
    angle = angles(x, x.shape[-1] // 2)
    turns = torch.polar(torch.ones_like(angle), angle)
    pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * turns).flatten(-2)


def first_units(x: Tensor) -> Tensor:
    """Only the first four units of a head are turned."""
    return torch.cat([halves(x[..., :4]), x[..., 4:]], -1)


def normed(x: Tensor, gain: Tensor | None = None) -> Tensor:
    """RMSNorm of each head."""
    x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
    return x if gain is None else x * gain


@final
class Attention(nn.Module):
    """Linear layers, attention, linear layers.

    Args:
        between: What happens to queries and keys.
        size: Units in a head.
        heads: Heads of queries.
        key_heads: Heads of keys and values; as many as heads by default.
        packed: ``"parts"`` or ``"heads"``: one projection, its rows parts × heads × units or heads × parts × units.
        fused: Whether PyTorch's kernel attends.
        gains: Whether queries and keys have a gain behind their norm.
    """

    def __init__(
        self,
        between: Callable[[Tensor], Tensor] = torch.Tensor.contiguous,
        *,
        size: int = 4,
        heads: int = 2,
        key_heads: int = 0,
        packed: str = "",
        fused: bool = True,
        gains: bool = False,
    ) -> None:
        super().__init__()
        self.between, self.size, self.heads = between, size, heads
        self.key_heads, self.packed, self.fused = (
            key_heads or heads,
            packed,
            fused,
        )
        rows = [heads * size, self.key_heads * size, self.key_heads * size]
        self.rows = rows
        self.first = nn.Linear(INPUTS, WIDTH)
        if packed:
            self.qkv = nn.Linear(WIDTH, sum(rows))
        else:
            self.q, self.k, self.v = (nn.Linear(WIDTH, n) for n in rows)
        self.o = nn.Linear(heads * size, WIDTH)
        self.last = nn.Linear(WIDTH, OUTPUTS)
        self.gain_q, self.gain_k = (
            nn.Parameter(torch.rand(size) + 0.5) if gains else None
            for _ in range(2)
        )

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values: ``(batch, heads, time, units)``."""
        if not self.packed:
            found = (self.q(x), self.k(x), self.v(x))
        elif self.packed == "parts":
            found = self.qkv(x).split(self.rows, -1)
        else:
            by_head = self.qkv(x).unflatten(-1, (self.heads, 3 * self.size))
            found = tuple(p.flatten(-2) for p in by_head.chunk(3, -1))
        return tuple(
            p.unflatten(-1, (-1, self.size)).transpose(1, 2) for p in found
        )

    def forward(self, x: Tensor) -> Tensor:
        """Rows of numbers ``(batch, time, INPUTS)`` to ``(batch, time, OUTPUTS)``."""
        x = torch.tanh(self.first(x))
        q, k, v = self.split(x)
        if self.gain_q is not None:
            q, k = normed(q, self.gain_q), normed(k, self.gain_k)
        q, k = self.between(q), self.between(k)
        each = self.heads // self.key_heads
        if each > 1:
            k, v = (p.repeat_interleave(each, 1) for p in (k, v))
        if self.fused:
            mixed = F.scaled_dot_product_attention(q, k, v)
        else:
            scores = q @ k.transpose(-1, -2) / self.size**0.5
            mixed = scores.softmax(-1) @ v
        mixed = self.o(mixed.transpose(1, 2).flatten(-2))
        return self.last(torch.tanh(mixed))


ROWS = torch.randn(
    3,
    6,
    INPUTS,
    dtype=torch.float64,
    generator=torch.Generator().manual_seed(3),
)


def proved_spec(net: nn.Module, rows: Tensor = ROWS) -> PermutationSpec:
    """The spec with all kinds, with random elements of everything proved in float64, and no group smaller."""
    net = net.double().eval()
    spec = infer_spec(net, rows, kinds="all")
    assert largest_error(net, spec, rows) < 1e-9
    for name, group in infer_spec(net, rows).groups.items():
        assert spec.groups[name].members == group.members, "a group shrank"
    return spec


def kinds_along(
    spec: PermutationSpec, tensor: str, dim: int
) -> set[tuple[str, int]]:
    """Kind and power of everything that moves along a dimension of a tensor."""
    axis_map = spec.maps[tensor]
    found = set()
    for component in axis_map.components:
        dims = {axis_map.site_dims[site] for site in component.sites}
        if dim in dims:
            kind = spec.groups[component.group].kind
            found.add((kind, component.power))
    return found
