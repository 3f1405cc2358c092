"""Random small networks: a program of operations on a growing list of ``(batch, time, width)`` tensors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Step = tuple[str, int, int, int]
TIME, INPUT = 4, 3


class RandomGraph(nn.Module):
    """Runs a program; every step reads tensors made before (numbers modulo what there is) and adds its result.

    Steps whose operands do not fit fall back to a linear layer, so every program runs.
    """

    def __init__(self, program: list[Step], seed: int) -> None:
        super().__init__()
        self.program = program
        self.generator_seed = seed
        self.layers = nn.ModuleDict()
        self.tables = nn.ParameterDict()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self._build = True
            self.double()
            self(torch.randn(2, TIME, INPUT, dtype=torch.float64))
            self._build = False
        self.eval()

    def layer(self, key: str, make: object) -> nn.Module:
        """The layer of a step, made on the first run."""
        if self._build and key not in self.layers:
            self.layers[key] = make().double()  # type: ignore[operator]
            for parameter in self.layers[key].parameters():
                with torch.no_grad():
                    parameter.add_(0.1 * torch.randn_like(parameter))
        return self.layers[key]

    def table(self, key: str, *shape: int) -> Tensor:
        """A bare parameter of a step."""
        if self._build and key not in self.tables:
            self.tables[key] = nn.Parameter(
                torch.randn(*shape, dtype=torch.float64) / max(shape) ** 0.5
            )
        return self.tables[key]

    def linear(self, key: str, x: Tensor, width: int) -> Tensor:
        """A linear layer on the last dimension."""
        return self.layer(key, lambda: nn.Linear(x.shape[-1], width))(x)

    def forward(self, x: Tensor) -> Tensor:
        values = [x, self.linear("stem", x, 6)]
        for number, (name, a, b, size) in enumerate(self.program):
            left, right = (
                values[-1 - a % len(values)],
                values[-1 - b % len(values)],
            )
            result = getattr(self, f"op_{name}")(
                str(number), left, right, size
            )
            if 0 < result.shape[-1] <= 24:
                values.append(result)
        joined = torch.cat([values[-1], values[-2]], -1)
        return self.layer("head", lambda: nn.Linear(joined.shape[-1], 2))(
            joined
        )

    # Every operation takes (key, left, right, size) and returns (batch, time, width).
    def op_linear(self, key: str, x: Tensor, _y: Tensor, size: int) -> Tensor:
        return self.linear(key, x, 2 + size % 9)

    def op_mlp(self, key: str, x: Tensor, _y: Tensor, size: int) -> Tensor:
        return x + self.linear(
            key + "b",
            F.gelu(self.linear(key + "a", x, 2 + size % 9)),
            x.shape[-1],
        )

    def op_conv(self, key: str, x: Tensor, _y: Tensor, size: int) -> Tensor:
        groups = [g for g in (1, 2, 3, x.shape[-1]) if x.shape[-1] % g == 0][
            size % 3 % 2
        ]
        out = groups * (1 + size % 3)
        return self.layer(
            key,
            lambda: nn.Conv1d(x.shape[-1], out, 3, padding=1, groups=groups),
        )(x.mT).mT

    def op_depthwise(
        self, key: str, x: Tensor, _y: Tensor, size: int
    ) -> Tensor:
        width = x.shape[-1]
        out = width * (1 + size % 2)
        return self.layer(
            key, lambda: nn.Conv1d(width, out, 3, padding=1, groups=width)
        )(x.mT).mT

    def op_relu(self, _key: str, x: Tensor, _y: Tensor, _size: int) -> Tensor:
        return torch.tanh(x)

    def op_add(self, key: str, x: Tensor, y: Tensor, _size: int) -> Tensor:
        return x + (
            y if x.shape == y.shape else self.linear(key, y, x.shape[-1])
        )

    def op_mul(self, key: str, x: Tensor, y: Tensor, _size: int) -> Tensor:
        return x * torch.sigmoid(
            y if x.shape == y.shape else self.linear(key, y, x.shape[-1])
        )

    def op_cat(self, _key: str, x: Tensor, y: Tensor, _size: int) -> Tensor:
        return torch.cat([x, y], -1)

    def op_crelu(self, _key: str, x: Tensor, _y: Tensor, _size: int) -> Tensor:
        return torch.cat([x, -x], -1).relu()

    def op_half(self, _key: str, x: Tensor, _y: Tensor, size: int) -> Tensor:
        return x.chunk(2, -1)[size % 2] if x.shape[-1] % 2 == 0 else x

    def op_slice(self, _key: str, x: Tensor, _y: Tensor, size: int) -> Tensor:
        return x[..., size % x.shape[-1] :]

    def op_stride(
        self, _key: str, x: Tensor, _y: Tensor, _size: int
    ) -> Tensor:
        return x[..., ::2]

    def op_glu(self, _key: str, x: Tensor, _y: Tensor, _size: int) -> Tensor:
        return F.glu(x, -1) if x.shape[-1] % 2 == 0 else x

    def op_layer_norm(
        self, key: str, x: Tensor, _y: Tensor, _size: int
    ) -> Tensor:
        return self.layer(key, lambda: nn.LayerNorm(x.shape[-1]))(x)

    def op_batch_norm(
        self, key: str, x: Tensor, _y: Tensor, _size: int
    ) -> Tensor:
        return self.layer(key, lambda: nn.BatchNorm1d(x.shape[-1]))(x.mT).mT

    def op_group_norm(
        self, key: str, x: Tensor, _y: Tensor, size: int
    ) -> Tensor:
        groups = [g for g in (1, 2, 3, 4) if x.shape[-1] % g == 0][
            size % 2 if x.shape[-1] % 2 == 0 else 0
        ]
        return self.layer(key, lambda: nn.GroupNorm(groups, x.shape[-1]))(
            x.mT
        ).mT

    def op_softmax(
        self, _key: str, x: Tensor, _y: Tensor, size: int
    ) -> Tensor:
        return x.softmax(-1 if size % 2 else 1)

    def op_attention(
        self, key: str, x: Tensor, y: Tensor, size: int
    ) -> Tensor:
        heads, inner = 1 + size % 3, 2 + size % 2
        q, k, v = (
            self.linear(key + letter, z, heads * inner)
            .unflatten(-1, (heads, inner))
            .transpose(1, 2)
            for letter, z in (("q", x), ("k", y), ("v", y))
        )
        mixed = F.scaled_dot_product_attention(
            q, k, v, is_causal=size % 5 == 0
        )
        return self.linear(
            key + "o", mixed.transpose(1, 2).flatten(2), x.shape[-1]
        )

    def op_fused_attention(
        self, key: str, x: Tensor, _y: Tensor, size: int
    ) -> Tensor:
        heads = 1 + size % 2
        q, k, v = (
            self.linear(key, x, 3 * heads * 3)
            .unflatten(-1, (3, heads, 3))
            .permute(2, 0, 3, 1, 4)
        )
        mixed = ((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2)
        return x + self.linear(key + "o", mixed, x.shape[-1])

    def op_grouped_attention(
        self, key: str, x: Tensor, _y: Tensor, size: int
    ) -> Tensor:
        groups, each = 1 + size % 2, 2
        q = (
            self.linear(key + "q", x, groups * each * 3)
            .unflatten(-1, (groups * each, 3))
            .transpose(1, 2)
        )
        k, v = (
            self.linear(key + letter, x, groups * 3)
            .unflatten(-1, (groups, 3))
            .transpose(1, 2)
            .repeat_interleave(each, 1)
            for letter in "kv"
        )
        mixed = ((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2)
        return self.linear(key + "o", mixed, x.shape[-1])

    def op_mix_time(
        self, key: str, x: Tensor, _y: Tensor, _size: int
    ) -> Tensor:
        return self.linear(
            key + "b", torch.tanh(self.linear(key, x.mT, 5)), TIME
        ).mT

    def op_mean_time(
        self, _key: str, x: Tensor, _y: Tensor, _size: int
    ) -> Tensor:
        return x - x.mean(1, keepdim=True)

    def op_flatten(self, key: str, x: Tensor, _y: Tensor, size: int) -> Tensor:
        return self.linear(key, x.flatten(1), TIME * (1 + size % 3)).unflatten(
            -1, (TIME, 1 + size % 3)
        )

    def op_blocks(self, _key: str, x: Tensor, _y: Tensor, size: int) -> Tensor:
        blocks = [g for g in (2, 3) if x.shape[-1] % g == 0]
        if not blocks:
            return x
        view = x.unflatten(-1, (blocks[size % len(blocks)], -1))
        return [
            view.sum(-1),
            view.amax(-2),
            view.mT.flatten(2),
            view.softmax(-1).flatten(2),
        ][size % 4]

    def op_flip(self, _key: str, x: Tensor, _y: Tensor, size: int) -> Tensor:
        return x.flip(-1) if size % 2 else x.roll(1 + size % 3, -1)

    def op_gather(self, _key: str, x: Tensor, _y: Tensor, size: int) -> Tensor:
        order = torch.randperm(
            x.shape[-1], generator=torch.Generator().manual_seed(size)
        )
        return (
            x[..., order]
            if size % 2
            else x.index_select(-1, order[: 1 + size % x.shape[-1]])
        )

    def op_cumsum(self, _key: str, x: Tensor, _y: Tensor, size: int) -> Tensor:
        return x.cumsum(-1 if size % 3 == 0 else 1)

    def op_sort(self, _key: str, x: Tensor, _y: Tensor, _size: int) -> Tensor:
        return x.sort(-1).values

    def op_repeat(self, _key: str, x: Tensor, _y: Tensor, size: int) -> Tensor:
        return x.repeat(1, 1, 2) if size % 2 else x.repeat_interleave(2, -1)

    def op_outer(self, key: str, x: Tensor, y: Tensor, _size: int) -> Tensor:
        a, b = self.linear(key + "a", x, 3), self.linear(key + "b", y, 4)
        return (a[..., :, None] * b[..., None, :]).flatten(2)

    def op_tied(self, key: str, x: Tensor, _y: Tensor, size: int) -> Tensor:
        weight = self.table(key, 2 + size % 5, x.shape[-1])
        return x + F.linear(torch.tanh(F.linear(x, weight)), weight.T)

    def op_loop(self, key: str, x: Tensor, _y: Tensor, _size: int) -> Tensor:
        h = x
        for _ in range(2):
            h = torch.tanh(self.linear(key, h, x.shape[-1]) + x)
        return h

    def op_experts(self, key: str, x: Tensor, _y: Tensor, size: int) -> Tensor:
        weight, back = (
            self.table(key, 2, x.shape[-1], 3 + size % 2),
            self.table(key + "b", 2, 3 + size % 2, x.shape[-1]),
        )
        gate = self.linear(key + "g", x, 2).softmax(-1)
        return torch.einsum(
            "bte,btep->btp",
            gate,
            torch.einsum(
                "bteh,ehp->btep",
                torch.einsum("bti,eih->bteh", x, weight).relu(),
                back,
            ),
        )

    def op_write(self, _key: str, x: Tensor, y: Tensor, _size: int) -> Tensor:
        buffer = torch.zeros(
            *x.shape[:-1], x.shape[-1] + y.shape[-1], dtype=x.dtype
        )
        buffer[..., : x.shape[-1]] = x
        buffer[..., x.shape[-1] :] += y
        return buffer.mul_(2)

    def op_pad(self, _key: str, x: Tensor, _y: Tensor, size: int) -> Tensor:
        return F.pad(x, (1 + size % 2, size % 3))

    def op_positions(
        self, _key: str, x: Tensor, _y: Tensor, size: int
    ) -> Tensor:
        if size % 2:
            return x + torch.arange(TIME, dtype=x.dtype)[:, None]
        return x * torch.arange(1, x.shape[-1] + 1, dtype=x.dtype)

    def op_scan(self, key: str, x: Tensor, _y: Tensor, _size: int) -> Tensor:
        decay, state, outs = (
            torch.sigmoid(self.linear(key, x, x.shape[-1])),
            torch.zeros_like(x[:, 0]),
            [],
        )
        for t in range(TIME):
            state = decay[:, t] * state + x[:, t]
            outs.append(state)
        return torch.stack(outs, 1)

    def op_stack(self, _key: str, x: Tensor, y: Tensor, size: int) -> Tensor:
        if x.shape != y.shape:
            return x
        return [
            torch.stack([x, y], -1).flatten(2),
            torch.stack([x, y], 2).amax(2),
            torch.stack([x, y], 2).flatten(2),
        ][size % 3]

    def op_lstm(self, key: str, x: Tensor, _y: Tensor, size: int) -> Tensor:
        return self.layer(
            key, lambda: nn.LSTM(x.shape[-1], 2 + size % 4, batch_first=True)
        )(x)[0]


OPERATIONS = tuple(
    sorted(
        name.removeprefix("op_")
        for name in vars(RandomGraph)
        if name.startswith("op_")
    )
)
