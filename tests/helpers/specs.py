"""Hand-made specs with every kind of component, and states that fit them."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_rebasin.symmetry import (
    AxisMap,
    Component,
    Group,
    PermutationSpec,
    TensorInfo,
)


def nested_spec(
    heads: int = 3, inner: int = 4, width: int = 5
) -> PermutationSpec:
    """Heads with the units inside each of them, and a model width beside.

    ``value.weight`` is ``(heads · inner, width)`` as a fused projection, ``out.weight`` ``(width, heads · inner)``, and
    ``scale`` has one number per head.
    """
    outer = Group("heads", heads)
    units = Group("value", inner, outer)
    model = Group("model", width)
    both = torch.arange(heads * inner)[:, None]
    one = torch.arange(width)[:, None]
    maps = {
        "value.weight": AxisMap(
            "value.weight",
            ((heads, inner), (width,)),
            (Component("value", (0, 1), both), Component("model", (2,), one)),
        ),
        "out.weight": AxisMap(
            "out.weight",
            ((width,), (heads, inner)),
            (Component("model", (0,), one), Component("value", (1, 2), both)),
        ),
        "scale": AxisMap(
            "scale",
            ((heads,),),
            (Component("heads", (0,), torch.arange(heads)[:, None]),),
        ),
    }
    tensors = {
        "value.weight": TensorInfo((heads * inner, width)),
        "out.weight": TensorInfo((width, heads * inner)),
        "scale": TensorInfo((heads,)),
    }
    return PermutationSpec(
        {"heads": outer, "value": units, "model": model}, tensors, maps
    )


def grouped_spec(
    groups: int = 2, inputs: int = 3, outputs: int = 2
) -> PermutationSpec:
    """A grouped convolution: weight ``(groups · outputs, inputs, 3)``; both channel axes depend on the group."""
    outer = Group("g", groups)
    ins, outs = Group("in", inputs, outer), Group("out", outputs, outer)
    maps = {
        "before.weight": AxisMap(
            "before.weight",
            ((groups, inputs), (4,)),
            (Component("in", (0, 1), torch.arange(groups * inputs)[:, None]),),
        ),
        "conv.weight": AxisMap(
            "conv.weight",
            ((groups, outputs), (inputs,), (3,)),
            (
                Component(
                    "out", (0, 1), torch.arange(groups * outputs)[:, None]
                ),
                Component(
                    "in", (0, 2), torch.arange(groups * inputs)[:, None]
                ),
            ),
        ),
        "conv.bias": AxisMap(
            "conv.bias",
            ((groups, outputs),),
            (
                Component(
                    "out", (0, 1), torch.arange(groups * outputs)[:, None]
                ),
            ),
        ),
    }
    tensors = {
        "before.weight": TensorInfo((groups * inputs, 4)),
        "conv.weight": TensorInfo((groups * outputs, inputs, 3)),
        "conv.bias": TensorInfo((groups * outputs,)),
    }
    return PermutationSpec({"g": outer, "in": ins, "out": outs}, tensors, maps)


def blocks_spec(channels: int = 4, positions: int = 3) -> PermutationSpec:
    """conv → flatten → linear, ``cat([x, −x])`` and a partly mapped axis."""
    group = Group("c", channels)
    index = torch.arange(channels)[:, None]
    twice = torch.stack(
        [torch.arange(channels), torch.arange(channels) + channels], 1
    )
    maps = {
        "conv.weight": AxisMap(
            "conv.weight", ((channels,), (2,)), (Component("c", (0,), index),)
        ),
        "linear.weight": AxisMap(
            "linear.weight",
            ((2,), (channels, positions)),
            (Component("c", (1,), index),),
        ),
        "crelu.weight": AxisMap(
            "crelu.weight", ((2 * channels,),), (Component("c", (0,), twice),)
        ),
        "part.weight": AxisMap(
            "part.weight",
            ((channels + 2,),),
            (Component("c", (0,), index + 1),),
        ),
    }
    tensors = {name: TensorInfo(m.shape) for name, m in maps.items()} | {
        "rest": TensorInfo((2,))
    }
    return PermutationSpec({"c": group}, tensors, maps)


def random_state(spec: PermutationSpec, seed: int = 0) -> dict[str, Tensor]:
    """Random float64 weights in the shapes of a spec."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(info.shape, generator=generator, dtype=torch.float64)
        for name, info in spec.tensors.items()
    }
