"""Reductions, normalisations, and operations for which the order along a dimension matters."""

from __future__ import annotations

from typing import Any

from lightning_rebasin.symmetry.permutations import labels
from lightning_rebasin.symmetry.permutations.labels import Label
from lightning_rebasin.symmetry.permutations.rules.base import (
    Context,
    dims_of,
    rule,
)
from lightning_rebasin.symmetry.permutations.rules.pointwise import pointwise
from lightning_rebasin.symmetry.trace.tape import Node, Ref


def reduced_shape(
    label: Label, dims: list[int], *, keepdim: Any = True
) -> Label:
    """Put reduced dimensions back as size 1 where ``keepdim`` asks for it."""
    if keepdim:
        for dim in sorted(dims):
            label = labels.insert_dim(label, dim)
    return label


@rule(
    "sum nansum mean nanmean amax amin var std logsumexp prod all any norm linalg_vector_norm count_nonzero aminmax "
    "var_mean std_mean max min median nanmedian mode argmax argmin trace"
)
def reduction(ctx: Context, node: Node) -> list[Label]:
    """Dimensions are reduced away; an index that comes out pins them."""
    given = node.arguments
    if isinstance(given.get("other"), Ref):
        return list(pointwise(ctx, node))
    label = ctx.label(given["self"])
    dims = dims_of(given.get("dim"), len(label.dims))
    if node.op == "aten.trace" or any(
        ctx.needed[output] for output in _positions_out(node)
    ):
        label = ctx.pin(label, dims, f"{node.op} gives positions")
    result = reduced_shape(
        ctx.reduce(label, dims), dims, keepdim=given.get("keepdim")
    )
    return [result for _ in node.outputs]


def _positions_out(node: Node) -> list[int]:
    """The results of a reduction that are positions along the reduced dimension."""
    if "argm" in node.op:
        return node.outputs[:1]
    # max(x, dim) returns the values and where they stand
    pairs = (
        "aten.max",
        "aten.min",
        "aten.median",
        "aten.nanmedian",
        "aten.mode",
    )
    return (
        node.outputs[1:] if len(node.outputs) == 2 and node.op in pairs else []
    )


@rule("_softmax _log_softmax softmax log_softmax _safe_softmax")
def softmax(ctx: Context, node: Node) -> list[Label]:
    """Normalised over one dimension, which stays."""
    label = ctx.label(node.arguments["self"])
    return [
        ctx.normalise(label, dims_of(node.arguments["dim"], len(label.dims)))
    ]


@rule("native_layer_norm layer_norm _fused_rms_norm rms_norm")
def layer_norm(ctx: Context, node: Node) -> list[Label]:
    """Normalised over the last dimensions, then scaled and shifted along them."""
    given = node.arguments
    label = ctx.label(given["input"])
    count = len(given["normalized_shape"])
    last = list(range(len(label.dims) - count, len(label.dims)))
    label = ctx.normalise(label, last)
    letters = list(range(len(label.dims)))
    operands: list[Any] = [(label, letters)]
    operands += [
        (ctx.label(given[n]), last)
        for n in ("weight", "bias")
        if isinstance(given.get(n), Ref)
    ]
    result = ctx.join(operands, letters)
    statistics = reduced_shape(ctx.reduce(label, last), last)
    return [result, *(statistics for _ in node.outputs[1:])]


@rule("native_group_norm")
def group_norm(ctx: Context, node: Node) -> list[Label]:
    """Channels viewed as (group, channel); normalised within each group."""
    given = node.arguments
    label = ctx.label(given["input"])
    shape, groups = label.shape, int(given["group"])
    split = labels.view(
        label, (shape[0], groups, shape[1] // groups, *shape[2:]), ctx.store
    )
    split = ctx.normalise(split, range(2, len(split.dims)))
    label = labels.view(split, shape, ctx.store)
    letters = list(range(len(shape)))
    operands: list[Any] = [(label, letters)]
    operands += [
        (ctx.label(given[n]), [1])
        for n in ("weight", "bias")
        if isinstance(given.get(n), Ref)
    ]
    result = ctx.join(operands, letters)
    statistics = ctx.reduce(split, range(2, len(split.dims)))
    return [result, *(statistics for _ in node.outputs[1:])]


@rule(
    "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training batch_norm cudnn_batch_norm "
    "_native_batch_norm_legit_functional miopen_batch_norm _batch_norm_with_update _batch_norm_no_update"
)
def batch_norm(ctx: Context, node: Node) -> list[Label]:
    """Channels meet their scale, shift and statistics; batch statistics also reduce everything else."""
    given = node.arguments
    label = ctx.label(given["input"])
    letters = list(range(len(label.dims)))
    names = ("weight", "bias", "running_mean", "running_var")
    operands: list[Any] = [
        (ctx.label(given[n]), [1])
        for n in names
        if isinstance(given.get(n), Ref)
    ]
    if given.get("training") or not isinstance(given.get("running_mean"), Ref):
        label = ctx.normalise(label, [d for d in letters if d != 1])
    result = ctx.join([(label, letters), *operands], letters)
    rest = [
        labels.fixed(ctx.out_shape(node, i))
        for i in range(1, len(node.outputs))
    ]
    return [result, *rest]


@rule(
    "cumsum cumprod cummax cummin logcumsumexp sort topk argsort kthvalue fft_fft _fft_r2c _fft_c2c _fft_c2r unfold "
    "diff renorm"
)
def ordered(ctx: Context, node: Node) -> list[Label]:
    """The order along one dimension (or several) matters, and the result has it anew."""
    given = node.arguments
    label = ctx.label(given["self"])
    ndim = len(label.dims)
    name = next(
        (n for n in ("dim", "dimension") if given.get(n) is not None), None
    )
    dims = dims_of(given[name] if name else -1, ndim)
    label = ctx.pin(label, dims, f"{node.op} depends on the order")
    return [
        _renew(ctx, label, dims, ctx.out_shape(node, i))
        for i in range(len(node.outputs))
    ]


@rule(
    "max_pool1d max_pool2d max_pool2d_with_indices max_pool3d_with_indices avg_pool1d avg_pool2d avg_pool3d "
    "adaptive_avg_pool1d _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d "
    "adaptive_max_pool3d upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d "
    "_upsample_nearest_exact2d _upsample_nearest_exact3d upsample_linear1d upsample_bilinear2d upsample_trilinear3d "
    "upsample_bicubic2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa reflection_pad1d reflection_pad2d "
    "reflection_pad3d replication_pad1d replication_pad2d replication_pad3d adaptive_avg_pool2d adaptive_avg_pool3d "
    "fractional_max_pool2d"
)
def spatial(ctx: Context, node: Node) -> list[Label]:
    """Pooling, resizing and reflecting: the last one to three dimensions are an image."""
    import re

    label = ctx.label(
        node.arguments["self"]
        if "self" in node.arguments
        else node.arguments["input"]
    )
    found = re.search(r"([123])d", node.op)
    space = int(found.group(1)) if found else 2
    dims = list(range(len(label.dims) - space, len(label.dims)))
    label = ctx.pin(label, dims, "position in the image")
    return [
        _renew(ctx, label, dims, ctx.out_shape(node, i))
        for i in range(len(node.outputs))
    ]


def _renew(
    ctx: Context, label: Label, dims: list[int], shape: tuple[int, ...]
) -> Label:
    """Replace pinned dimensions by new pinned ones of the sizes in ``shape``."""
    keep = len(shape) == len(label.dims)
    result = ctx.reduce(label, dims)
    for dim in sorted(dims) if keep else ():
        result = labels.insert_pinned(result, dim, shape[dim])
    if not keep and len(shape) == len(label.dims) + 1:
        for dim in sorted(dims):
            result = labels.insert_pinned(result, dim, shape[dim])
        result = labels.insert_pinned(result, len(shape) - 1, shape[-1])
    return result
