"""Normalisations: what is reduced meets every position again.

In ``softmax`` over the 3 columns of a 2×3 tensor the columns are used as a set, and yet each column of the result is
that of the input: the label stays, and its elements are marked.  Scales and shifts are joined behind it.
"""

from __future__ import annotations

from collections.abc import Sequence

from lightning_rebasin.symmetry.permutations import label_dims
from lightning_rebasin.symmetry.permutations.labels import Label
from lightning_rebasin.symmetry.permutations.rules.base import Context, Results
from lightning_rebasin.symmetry.permutations.rules.operation import (
    Operation,
    dims_of,
)
from lightning_rebasin.symmetry.permutations.rules.registry import rule


@rule("_softmax _log_softmax softmax log_softmax _safe_softmax")
def softmax(ctx: Context, op: Operation) -> Results:
    """Normalised over one dimension, which stays."""
    label = op.label()
    dims = dims_of(op["dim"], label.ndim)
    return [ctx.normalise(label, dims)]


@rule("native_layer_norm layer_norm _fused_rms_norm rms_norm")
def layer_norm(ctx: Context, op: Operation) -> Results:
    """Normalised over the last dimensions, then scaled and shifted along them."""
    label = op.label("input")
    first = label.ndim - len(op["normalized_shape"])
    last = range(first, label.ndim)
    label = ctx.normalise(label, last)
    factors = op.labels("weight", "bias")
    result = _scaled(ctx, label, factors, last)
    # The mean and the inverse deviation keep the dimensions.
    statistics = label_dims.insert_dims(ctx.reduce(label, last), last)
    return _with_statistics(op, result, statistics)


@rule("native_group_norm")
def group_norm(ctx: Context, op: Operation) -> Results:
    """Channels viewed as (group, channel); normalised within each group."""
    label = op.label("input")
    shape = label.shape
    batch, channels, *space = shape
    groups = int(op["group"])
    inside = channels // groups
    split = ctx.view(label, [batch, groups, inside, *space])
    within = range(2, split.ndim)
    split = ctx.normalise(split, within)
    label = ctx.view(split, shape)
    factors = op.labels("weight", "bias")
    result = _scaled(ctx, label, factors, [1])
    # One mean and one deviation for each group.
    statistics = ctx.reduce(split, within)
    return _with_statistics(op, result, statistics)


def _with_statistics(
    op: Operation, result: Label, statistics: Label
) -> Results:
    """The normalised tensor, and its statistics for all results behind it."""
    behind = op.results[1:]
    return [result, *(statistics for _ in behind)]


@rule(
    "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training",
    "_native_batch_norm_legit_functional _batch_norm_with_update _batch_norm_no_update",
    "batch_norm cudnn_batch_norm miopen_batch_norm",
)
def batch_norm(ctx: Context, op: Operation) -> Results:
    """Channels meet their scale, shift and statistics; batch statistics also reduce everything else."""
    label = op.label("input")
    of_channels = op.labels("weight", "bias", "running_mean", "running_var")
    if op.get("training") or not op.has_tensor("running_mean"):
        label = ctx.normalise(label, label.dims_without(1))
    result = _scaled(ctx, label, of_channels, [1])
    return [result, *op.fixed_results(1)]


@rule("_weight_norm_interface _weight_norm")
def weight_norm(ctx: Context, op: Operation) -> Results:
    """``w = g · v / ‖v‖`` with the norm over all dimensions but ``dim``."""
    direction = op.label("v")
    length = op.label("g")
    kept = op.dim(direction.ndim)
    others = direction.dims_without(kept)
    direction = ctx.normalise(direction, others)
    result = ctx.meet(direction, length)
    norms = label_dims.insert_dims(ctx.reduce(result, others), others)
    # Only the interface gives the norms too.
    return [result, norms][: len(op.results)]


def _scaled(
    ctx: Context, label: Label, factors: Sequence[Label], dims: Sequence[int]
) -> Label:
    """A label joined with scales, shifts or statistics along some of its dimensions."""
    letters: Sequence[int] = range(label.ndim)
    operands = [(label, letters)]
    operands += [(factor, dims) for factor in factors]
    return ctx.join(operands, letters)
