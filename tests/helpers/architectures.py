"""Classical tables and shapes of large networks, for benchmarks that need no model, only its symmetries.

Each function returns ``(table, shapes)``: the group of every axis and the shape of every tensor.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

Table = dict[str, tuple[str | None, ...]]
Shapes = dict[str, tuple[int, ...]]


def _norm(
    table: Table, shapes: Shapes, name: str, size: int, group: str
) -> None:
    for part in ("weight", "bias"):
        shapes[f"{name}.{part}"], table[f"{name}.{part}"] = (size,), (group,)


def vgg16() -> tuple[Table, Shapes]:
    """VGG16 for CIFAR: 13 convolutions, two hidden layers of 512."""
    table: Table = {}
    shapes: Shapes = {}
    before, group = 3, None
    widths = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
    for i, width in enumerate(widths):
        shapes[f"c{i}.weight"], shapes[f"c{i}.bias"] = (
            (width, before, 3, 3),
            (width,),
        )
        table[f"c{i}.weight"], table[f"c{i}.bias"] = (
            (f"g{i}", group, None, None),
            (f"g{i}",),
        )
        before, group = width, f"g{i}"
    for i, (width, own) in enumerate(((512, "f0"), (512, "f1"), (10, None))):
        shapes[f"l{i}.weight"], shapes[f"l{i}.bias"] = (
            (width, before),
            (width,),
        )
        table[f"l{i}.weight"], table[f"l{i}.bias"] = (own, group), (own,)
        before, group = width, own
    return table, shapes


def resnet50() -> tuple[Table, Shapes]:
    """ResNet50 for ImageNet; the residual stream of a stage is one group."""
    table: Table = {"stem.weight": ("stem", None, None, None)}
    shapes: Shapes = {"stem.weight": (64, 3, 7, 7)}
    _norm(table, shapes, "stem.bn", 64, "stem")
    before, stream = 64, "stem"
    for stage, (width, blocks) in enumerate(
        ((64, 3), (128, 4), (256, 6), (512, 3))
    ):
        out = f"stage{stage}"
        for block in range(blocks):
            name = f"{stage}.{block}"
            for i, (after, source, own, inner, kernel) in enumerate(
                (
                    (width, before, f"{name}a", stream, 1),
                    (width, width, f"{name}b", f"{name}a", 3),
                    (4 * width, width, out, f"{name}b", 1),
                )
            ):
                shapes[f"{name}.c{i}.weight"] = (after, source, kernel, kernel)
                table[f"{name}.c{i}.weight"] = (own, inner, None, None)
                _norm(table, shapes, f"{name}.bn{i}", after, own)
            if block == 0:
                shapes[f"{name}.down.weight"] = (4 * width, before, 1, 1)
                table[f"{name}.down.weight"] = (out, stream, None, None)
                _norm(table, shapes, f"{name}.down.bn", 4 * width, out)
            before, stream = 4 * width, out
    shapes["fc.weight"], table["fc.weight"] = (1000, before), (None, stream)
    return table, shapes


def resnet20(multiple: int) -> tuple[Table, Shapes]:
    """ResNet20 with projection shortcuts, ``multiple`` times as wide."""
    before, stream = 16 * multiple, "stage0"
    table: Table = {"stem.weight": (stream, None, None, None)}
    shapes: Shapes = {"stem.weight": (before, 3, 3, 3)}
    _norm(table, shapes, "stem.bn", before, stream)
    for stage in range(3):
        width, out = 16 * multiple * 2**stage, f"stage{stage}"
        for block in range(3):
            name = f"{stage}.{block}"
            for i, (source, own, inner) in enumerate(
                ((before, name, stream), (width, out, name))
            ):
                shapes[f"{name}.c{i}.weight"] = (width, source, 3, 3)
                table[f"{name}.c{i}.weight"] = (own, inner, None, None)
                _norm(table, shapes, f"{name}.bn{i}", width, own)
            if block == 0 and stage:
                shapes[f"{name}.down.weight"] = (width, before, 1, 1)
                table[f"{name}.down.weight"] = (out, stream, None, None)
            before, stream = width, out
    shapes["fc.weight"], table["fc.weight"] = (10, before), (None, stream)
    return table, shapes


def transformer_mlps(
    layers: int = 12, width: int = 768, hidden: int = 3072
) -> tuple[Table, Shapes]:
    """The hidden layers of a transformer's feed-forward blocks, the residual stream pinned."""
    table: Table = {}
    shapes: Shapes = {}
    for i in range(layers):
        shapes[f"{i}.up.weight"], shapes[f"{i}.up.bias"] = (
            (hidden, width),
            (hidden,),
        )
        shapes[f"{i}.down.weight"] = (width, hidden)
        table[f"{i}.up.weight"], table[f"{i}.up.bias"] = (
            (f"h{i}", None),
            (f"h{i}",),
        )
        table[f"{i}.down.weight"] = (None, f"h{i}")
    return table, shapes


def random_states(
    shapes: Shapes, seed: int = 0
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Two states: weights and biases ~ N/√fan-in, norms near (1, 0)."""
    generator = torch.Generator().manual_seed(seed)
    found: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
    for state in found:
        fan = 1
        for name, shape in shapes.items():
            noise = torch.randn(shape, generator=generator)
            if ".bn" in name or name.startswith("bn"):
                state[name] = 0.1 * noise + float(name.endswith("weight"))
                continue
            fan = math.prod(shape[1:]) if len(shape) > 1 else fan
            state[name] = noise / fan**0.5
    return found
