"""Operations on images: pooling, resizing, patches, sampling, and channels that move into the image.

The last dimensions are an image, whose positions are pinned; what is before them, the batch and the channels, moves
along.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from lightning_rebasin.symmetry.permutations.label_dims import (
    insert_pinned,
    permute,
)
from lightning_rebasin.symmetry.permutations.labels import Label
from lightning_rebasin.symmetry.permutations.rules.base import Context, Results
from lightning_rebasin.symmetry.permutations.rules.operation import Operation
from lightning_rebasin.symmetry.permutations.rules.order import renewed
from lightning_rebasin.symmetry.permutations.rules.registry import rule

_PIXEL = "position in the image"
_COORDINATE = "coordinates of a position"


@rule(
    "max_pool1d max_pool2d max_pool2d_with_indices max_pool3d_with_indices fractional_max_pool2d",
    "avg_pool1d avg_pool2d avg_pool3d",
    "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d",
    "adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d",
    "upsample_nearest1d upsample_nearest2d upsample_nearest3d",
    "_upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d",
    "upsample_linear1d upsample_bilinear2d upsample_trilinear3d upsample_bicubic2d",
    "_upsample_bilinear2d_aa _upsample_bicubic2d_aa",
    "reflection_pad1d reflection_pad2d reflection_pad3d",
    "replication_pad1d replication_pad2d replication_pad3d",
)
def spatial(ctx: Context, op: Operation) -> Results:
    """Pooling, resizing and reflecting: the last one to three dimensions are an image."""
    label = _image(op)
    # The name tells how many, because some take images without a batch.
    found = re.search(r"([123])d", op.name)
    space = int(found.group(1)) if found else 2
    image = range(label.ndim - space, label.ndim)
    untouched = _untouched(op, space)
    dims = [dim for dim in image if dim - image.start not in untouched]
    label = ctx.pin(label, dims, _PIXEL)
    return [renewed(ctx, label, dims, shape) for shape in op.out_shapes]


def _untouched(op: Operation, space: int) -> set[int]:
    """Dimensions of an image that a pooling leaves alone: windows of one place, one after the other.

    The funnel transformer pools a sequence as an image whose other side are the units of its stream.
    """
    # Of the largest values some poolings also give the places, which count through the whole image.
    places = len(op.out_shapes) > 1 and op.needs(1)
    if places or not op.name.startswith(("aten.avg_pool", "aten.max_pool")):
        return set()
    kernel = _per_dimension(op["kernel_size"], space)
    # Without a stride windows stand side by side.
    stride = _per_dimension(op.get("stride") or kernel, space)
    padding = _per_dimension(op.get("padding") or 0, space)
    return {
        dim
        for dim in range(space)
        if (kernel[dim], stride[dim], padding[dim]) == (1, 1, 0)
    }


def _per_dimension(argument: int | Sequence[int], space: int) -> list[int]:
    """One number for each dimension of an image, of an argument that may have one for all."""
    numbers = [argument] if isinstance(argument, int) else list(argument)
    return numbers * space if len(numbers) == 1 else numbers


def _image(op: Operation) -> Label:
    """The image, whose argument has two names."""
    name = "self" if op.has_tensor("self") else "input"
    return op.label(name)


@rule(
    "grid_sampler_2d grid_sampler_3d cudnn_grid_sampler grid_sampler _grid_sampler_2d_cpu_fallback"
)
def grid_sample(ctx: Context, op: Operation) -> Results:
    """Channels of an image read at positions that another tensor gives."""
    image = _image(op)
    grid = op.label("grid")
    space = range(2, image.ndim)
    coordinates = grid.ndim - 1
    image = ctx.pin(image, space, _PIXEL)
    grid = ctx.pin(grid, [coordinates], _COORDINATE)
    pixels = [("pixel", dim) for dim in space]
    places = [("place", dim) for dim in space]
    of_image = [*"nc", *pixels]
    of_grid = ["n", *places, "coordinate"]
    operands = [(image, of_image), (grid, of_grid)]
    return [ctx.join(operands, [*"nc", *places])]


@rule("affine_grid_generator")
def affine_grid(ctx: Context, op: Operation) -> Results:
    """Positions made of one matrix per image; only the batch is kept."""
    matrices = op.label("theta")
    result = ctx.pin_and_reduce(matrices, [1, 2], _COORDINATE)
    space = op.out_shape[1:]
    for dim, size in enumerate(space, start=1):
        result = insert_pinned(result, dim, size)
    return [result]


@rule("im2col")
def im2col(ctx: Context, op: Operation) -> Results:
    """Patches of an image: channels become (channel, kernel position), positions become one dimension."""
    label = op.label()
    *_, channels, _, _ = label.shape
    *_, patch, count = op.out_shape
    last = label.ndim - 1
    label = ctx.pin_and_reduce(label, [last - 1, last], _PIXEL)
    # Behind the channels: a position in the kernel, then the place of the patch.
    label = insert_pinned(label, last - 1, patch // channels)
    label = insert_pinned(label, last, count)
    return [ctx.view(label, op.out_shape)]


@rule("col2im")
def col2im(ctx: Context, op: Operation) -> Results:
    """Patches put together to an image."""
    label = op.label()
    *lead, channels, height, width = op.out_shape
    *_, patch, count = label.shape
    kernel = patch // channels
    label = ctx.view(label, [*lead, channels, kernel, count])
    last = label.ndim - 1
    label = ctx.pin_and_reduce(label, [last - 1, last], _PIXEL)
    label = insert_pinned(label, last - 1, height)
    label = insert_pinned(label, last, width)
    return [label]


@rule("pixel_shuffle")
def pixel_shuffle(ctx: Context, op: Operation) -> Results:
    """Channels (c, r, r) move into the image."""
    label = op.label()
    *lead, channels, height, width = label.shape
    r = int(op["upscale_factor"])
    channels //= r**2
    split = ctx.view(label, [*lead, channels, r, r, height, width])
    # (c, r, r, h, w) becomes (c, h, r, w, r).
    turned = _turned(split, [0, 3, 1, 4, 2])
    return [ctx.view(turned, op.out_shape)]


@rule("pixel_unshuffle")
def pixel_unshuffle(ctx: Context, op: Operation) -> Results:
    """Blocks of the image move into channels (c, r, r)."""
    label = op.label()
    *lead, channels, height, width = label.shape
    r = int(op["downscale_factor"])
    height //= r
    width //= r
    split = ctx.view(label, [*lead, channels, height, r, width, r])
    # (c, h, r, w, r) becomes (c, r, r, h, w).
    turned = _turned(split, [0, 2, 4, 1, 3])
    return [ctx.view(turned, op.out_shape)]


@rule("channel_shuffle native_channel_shuffle")
def channel_shuffle(ctx: Context, op: Operation) -> Results:
    """Channels (group, channel) become (channel, group)."""
    label = op.label()
    shape = label.shape
    batch, channels, *space = shape
    groups = int(op["groups"])
    inside = channels // groups
    split = ctx.view(label, [batch, groups, inside, *space])
    behind = range(3, split.ndim)
    turned = permute(split, [0, 2, 1, *behind])
    return [ctx.view(turned, shape)]


def _turned(label: Label, order: list[int]) -> Label:
    """The last dimensions in another order."""
    lead = label.ndim - len(order)
    behind = [lead + dim for dim in order]
    return permute(label, [*range(lead), *behind])
