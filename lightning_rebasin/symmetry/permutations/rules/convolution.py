"""Convolutions of any kind: channels viewed as (group, channel), kernel positions pinned.

With two groups over 6 channels in and 4 out, the image's channels are viewed as 2×3, (group, in), and the weight's as
2×2 over 3, (group, out) over in.  Letter ``g`` stacks independent convolutions, so the inputs of the weight may be
ordered differently in each group.
"""

from __future__ import annotations

from collections.abc import Sequence

from lightning_rebasin.symmetry.permutations import label_dims
from lightning_rebasin.symmetry.permutations.align import Letter
from lightning_rebasin.symmetry.permutations.labels import Label
from lightning_rebasin.symmetry.permutations.rules.base import Context, Results
from lightning_rebasin.symmetry.permutations.rules.operation import Operation
from lightning_rebasin.symmetry.permutations.rules.registry import rule


@rule("convolution _convolution")
def convolution(ctx: Context, op: Operation) -> Results:
    """Convolutions of any kind."""
    image = op.label("input")
    weight = op.label("weight")
    # Dimensions of space, behind the batch and the channels.
    space = range(2, weight.ndim)
    mixed = [dim for dim in space if not _point_by_point(op, dim)]
    image = ctx.pin(image, mixed, "position in the image")
    weight = ctx.pin(weight, space, "position in the kernel")
    op.observe(0, "input", image, [1])

    groups = int(op["groups"])
    # A transposed convolution holds its inputs first.
    of_weight = "gio" if op["transposed"] else "goi"
    pixels = [("pixel", dim) for dim in space]
    kernel = [("kernel", dim) for dim in space]
    image = _grouped(ctx, image, 1, groups)
    weight = _grouped(ctx, weight, 0, groups)
    operands: list[tuple[Label, Sequence[Letter]]] = [
        (image, [*"ngi", *pixels]),
        (weight, [*of_weight, *kernel]),
    ]
    for bias in op.labels("bias"):
        of_outputs = _grouped(ctx, bias, 0, groups)
        operands.append((of_outputs, "go"))

    kept = [("pixel", dim) for dim in space if dim not in mixed]
    out = [*"ngo", *kept]
    result = ctx.join(operands, out, batch=["g"])
    shape = op.out_shape
    for dim in mixed:
        # There is one dimension more before it, because of the groups.
        result = label_dims.insert_pinned(result, dim + 1, shape[dim])
    return [ctx.view(result, shape)]


def _grouped(ctx: Context, label: Label, dim: int, groups: int) -> Label:
    """A label with its channels viewed as (group, channel)."""
    shape = list(label.shape)
    shape[dim] //= groups
    shape.insert(dim, groups)
    return ctx.view(label, shape)


def _point_by_point(op: Operation, dim: int) -> bool:
    """Whether a convolution treats the positions along a dimension of space one by one, all alike."""
    kernel = op.shape("weight")[dim]
    stride = _setting(op["stride"], dim)
    padding = _setting(op["padding"], dim)
    output_padding = _setting(op["output_padding"], dim)
    return (kernel, stride, padding, output_padding) == (1, 1, 0, 0)


def _setting(given: Sequence[int], dim: int) -> int:
    """The setting of one dimension of space; a single one is for all of them."""
    place = dim - 2
    return given[place] if place < len(given) else given[0]
