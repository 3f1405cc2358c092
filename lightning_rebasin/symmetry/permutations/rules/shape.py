"""Operations that only move labels: views, slices, splits, shuffles."""

from __future__ import annotations

import numpy as np

from lightning_rebasin.symmetry.permutations import labels
from lightning_rebasin.symmetry.permutations.labels import Label
from lightning_rebasin.symmetry.permutations.rules.base import (
    Context,
    dims_of,
    rule,
    unknown,
)
from lightning_rebasin.symmetry.trace.tape import Node


@rule(
    "alias detach view_as contiguous _unsafe_view view reshape _reshape_alias unflatten flatten"
)
def view(ctx: Context, node: Node) -> list[Label]:
    """Row-major reshape; ``view(dtype)`` is not one."""
    label, shape = ctx.label(node.arguments["self"]), ctx.out_shape(node)
    if int(np.prod(label.shape)) != int(np.prod(shape)):
        return unknown(ctx, node)
    return [labels.view(label, shape, ctx.store)]


@rule("t transpose permute movedim numpy_T swapaxes adjoint mT")
def permute(ctx: Context, node: Node) -> list[Label]:
    """Reordered dimensions."""
    label = ctx.label(node.arguments["self"])
    ndim = len(label.dims)
    order = list(range(ndim))
    if node.op == "aten.permute":
        order = [d % ndim for d in node.arguments["dims"]]
    elif node.op == "aten.t":
        order = order[::-1]
    elif ndim:
        a, b = node.arguments["dim0"] % ndim, node.arguments["dim1"] % ndim
        order[a], order[b] = b, a
    return [labels.permute(label, order)]


@rule("unsqueeze")
def unsqueeze(ctx: Context, node: Node) -> list[Label]:
    """A new dimension of size 1."""
    label = ctx.label(node.arguments["self"])
    return [
        labels.insert_dim(label, node.arguments["dim"] % (len(label.dims) + 1))
    ]


@rule("squeeze")
def squeeze(ctx: Context, node: Node) -> list[Label]:
    """Dimensions of size 1 dropped."""
    label = ctx.label(node.arguments["self"])
    shape = label.shape
    for dim in sorted(
        dims_of(node.arguments.get("dim"), len(shape)), reverse=True
    ):
        if shape[dim] == 1:
            label = labels.drop_dim(label, dim)
    return [label]


@rule("expand expand_as broadcast_to")
def expand(ctx: Context, node: Node) -> list[Label]:
    """Broadcast: the new positions are copies."""
    return [
        labels.expand(ctx.label(node.arguments["self"]), ctx.out_shape(node))
    ]


@rule("repeat tile")
def repeat(ctx: Context, node: Node) -> list[Label]:
    """Every dimension becomes (repeat, old)."""
    label, repeats = (
        ctx.label(node.arguments["self"]),
        node.arguments["repeats"],
    )
    for _ in range(len(repeats) - len(label.dims)):
        label = labels.insert_dim(label, 0)
    old = label.shape
    for dim in reversed(range(len(old))):
        label = labels.insert_dim(label, dim)
    grown = [size for pair in zip(repeats, old, strict=True) for size in pair]
    return [
        labels.view(
            labels.expand(label, grown), ctx.out_shape(node), ctx.store
        )
    ]


@rule("slice")
def slice_(ctx: Context, node: Node) -> list[Label]:
    """Every ``step``-th position from ``start`` to ``end``."""
    given = node.arguments
    ndim = len(ctx.shape(given["self"]))
    dim = (given["dim"] or 0) % ndim
    index = np.arange(ctx.shape(given["self"])[dim])[
        given["start"] : given["end"] : given["step"]
    ]
    return [take(ctx, node, dim, index)]


@rule("narrow")
def narrow(ctx: Context, node: Node) -> list[Label]:
    """``length`` positions from ``start``."""
    given = node.arguments
    dim = given["dim"] % len(ctx.shape(given["self"]))
    return [
        take(
            ctx,
            node,
            dim,
            np.arange(given["start"], given["start"] + given["length"]),
        )
    ]


@rule("select")
def select(ctx: Context, node: Node) -> list[Label]:
    """One position of a dimension, which goes."""
    given = node.arguments
    shape = ctx.shape(given["self"])
    dim = given["dim"] % len(shape)
    label = pick(
        ctx, ctx.label(given["self"]), dim, given["index"] % shape[dim]
    )
    return [label]


def pick(ctx: Context, label: Label, dim: int, index: int) -> Label:
    """One position of a dimension; a parameter's other axes may then depend on that dimension."""
    chosen = [p for p in label.parts if set(p.sites) & set(label.dims[dim])]
    for outer in chosen:
        for inner in label.parts:
            if not set(inner.sites) & set(outer.sites):
                ctx.wishes.ask(
                    inner.elements, outer.elements, outer.elements.ids.size
                )
    return labels.drop_dim(
        labels.take(label, dim, np.array([index]), ctx.store), dim
    )


@rule("unbind")
def unbind(ctx: Context, node: Node) -> list[Label]:
    """Every position of a dimension by itself."""
    label = ctx.label(node.arguments["self"])
    dim = (node.arguments["dim"] or 0) % len(label.dims)
    used = [
        i if ctx.needed[node.outputs[i]] else 0
        for i in range(len(node.outputs))
    ]
    picked = {i: pick(ctx, label, dim, i) for i in set(used)}
    return [picked[i] for i in used]


@rule(
    "split split_with_sizes chunk tensor_split unsafe_split unsafe_split_with_sizes unsafe_chunk split_copy"
)
def split(ctx: Context, node: Node) -> list[Label]:
    """Consecutive pieces of a dimension."""
    dim = (node.arguments["dim"] or 0) % len(ctx.shape(node.arguments["self"]))
    start, result = 0, []
    for i in range(len(node.outputs)):
        size = ctx.out_shape(node, i)[dim]
        result.append(take(ctx, node, dim, np.arange(start, start + size), i))
        start += size
    return result


@rule("flip")
def flip(ctx: Context, node: Node) -> list[Label]:
    """Reversed dimensions."""
    label = ctx.label(node.arguments["self"])
    for dim in dims_of(node.arguments["dims"], len(label.dims)):
        label = labels.take(
            label, dim, np.arange(label.shape[dim])[::-1].copy(), ctx.store
        )
    return [label]


@rule("roll")
def roll(ctx: Context, node: Node) -> list[Label]:
    """Cyclic shifts."""
    given = node.arguments
    label, shape = ctx.label(given["self"]), ctx.shape(given["self"])
    if not given["dims"]:
        flat = labels.view(label, (int(np.prod(shape)),), ctx.store)
        moved = labels.take(
            flat,
            0,
            np.roll(np.arange(int(np.prod(shape))), given["shifts"][0]),
            ctx.store,
        )
        return [labels.view(moved, shape, ctx.store)]
    for shift, dim in zip(
        given["shifts"], dims_of(given["dims"], len(shape)), strict=True
    ):
        label = labels.take(
            label, dim, np.roll(np.arange(shape[dim]), shift), ctx.store
        )
    return [label]


def take(
    ctx: Context,
    node: Node,
    dim: int,
    index: np.ndarray[tuple[int], np.dtype[np.int64]],
    output: int = 0,
) -> Label:
    """Positions of one dimension; slicing a piece out of a concatenation gives back the piece."""
    piece = ctx.piece_of(node.arguments["self"], dim, index)
    if piece is not None:
        return piece
    label = ctx.label(node.arguments["self"])
    if 0 in ctx.out_shape(node, output):
        return labels.fixed(ctx.out_shape(node, output))
    return labels.take(label, dim, index, ctx.store)


@rule("as_strided")
def as_strided(ctx: Context, node: Node) -> list[Label]:
    """The identity on an unchanged shape with row-major strides; anything else is not understood."""
    given = node.arguments
    label = ctx.label(given["self"])
    size, stride = list(given["size"]), list(given["stride"])
    row_major = [int(np.prod(size[d + 1 :])) for d in range(len(size))]
    same = all(
        n == 1 or s == r
        for n, s, r in zip(size, stride, row_major, strict=True)
    )
    if (
        not given["storage_offset"]
        and same
        and int(np.prod(size)) == int(np.prod(label.shape))
    ):
        return [labels.view(label, size, ctx.store)]
    return unknown(ctx, node)


@rule("pixel_shuffle")
def pixel_shuffle(ctx: Context, node: Node) -> list[Label]:
    """Channels (c, r, r) move into the image."""
    label, r = (
        ctx.label(node.arguments["self"]),
        int(node.arguments["upscale_factor"]),
    )
    *lead, channels, height, width = label.shape
    n = len(lead)
    split_ = labels.view(
        label, (*lead, channels // r**2, r, r, height, width), ctx.store
    )
    moved = labels.permute(split_, [*range(n), n, n + 3, n + 1, n + 4, n + 2])
    return [labels.view(moved, ctx.out_shape(node), ctx.store)]


@rule("pixel_unshuffle")
def pixel_unshuffle(ctx: Context, node: Node) -> list[Label]:
    """Blocks of the image move into channels (c, r, r)."""
    label, r = (
        ctx.label(node.arguments["self"]),
        int(node.arguments["downscale_factor"]),
    )
    *lead, channels, height, width = label.shape
    n = len(lead)
    split_ = labels.view(
        label, (*lead, channels, height // r, r, width // r, r), ctx.store
    )
    moved = labels.permute(split_, [*range(n), n, n + 2, n + 4, n + 1, n + 3])
    return [labels.view(moved, ctx.out_shape(node), ctx.store)]


@rule("channel_shuffle native_channel_shuffle")
def channel_shuffle(ctx: Context, node: Node) -> list[Label]:
    """Channels (group, channel) become (channel, group)."""
    label, groups = (
        ctx.label(node.arguments["self"]),
        int(node.arguments["groups"]),
    )
    batch, channels, *rest = label.shape
    split_ = labels.view(
        label, (batch, groups, channels // groups, *rest), ctx.store
    )
    moved = labels.permute(split_, [0, 2, 1, *range(3, 3 + len(rest))])
    return [labels.view(moved, label.shape, ctx.store)]


@rule("view_as_real")
def view_as_real(ctx: Context, node: Node) -> list[Label]:
    """A last dimension (real, imaginary)."""
    label = ctx.label(node.arguments["self"])
    return [labels.insert_pinned(label, len(label.dims), 2)]


@rule("view_as_complex")
def view_as_complex(ctx: Context, node: Node) -> list[Label]:
    """The last dimension becomes the real and imaginary part."""
    label = ctx.label(node.arguments["self"])
    last = len(label.dims) - 1
    return [
        ctx.reduce(ctx.pin(label, [last], "real and imaginary part"), [last])
    ]
