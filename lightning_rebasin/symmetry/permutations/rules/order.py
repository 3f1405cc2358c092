"""Operations for which the order along a dimension matters: running sums, sorting, Fourier transforms, triangles.

The result has positions of its own along such a dimension, whatever its elements were: ``topk`` of 2 of the 3 columns
of a 2×3 tensor pins the columns, and its two columns are the first and the second largest.
"""

from __future__ import annotations

from collections.abc import Sequence

from lightning_rebasin.symmetry.permutations import label_dims
from lightning_rebasin.symmetry.permutations.labels import Label
from lightning_rebasin.symmetry.permutations.rules.base import (
    Context,
    Results,
    unknown,
)
from lightning_rebasin.symmetry.permutations.rules.operation import (
    Operation,
    dims_of,
)
from lightning_rebasin.symmetry.permutations.rules.registry import rule


@rule(
    "cumsum cumprod cummax cummin logcumsumexp diff",
    "sort topk argsort kthvalue",
    "fft_fft _fft_r2c _fft_c2c _fft_c2r",
    "unfold renorm",
)
def ordered(ctx: Context, op: Operation) -> Results:
    """The order along one dimension (or several) matters, and the result has it anew."""
    label = op.label()
    last = -1
    given = op.get("dim")
    if given is None:
        # So ``unfold`` calls it.
        given = op.get("dimension")
    if given is None:
        given = last
    dims = dims_of(given, label.ndim)
    label = ctx.pin(label, dims, f"{op.name} depends on the order")
    return [renewed(ctx, label, dims, shape) for shape in op.out_shapes]


def renewed(
    ctx: Context, label: Label, dims: Sequence[int], shape: Sequence[int]
) -> Label:
    """Replace pinned dimensions by new pinned ones.

    Args:
        ctx: The pass.
        label: The label, pinned along ``dims``.
        dims: Dimensions whose order matters.
        shape: Shape of the result, with as many dimensions, with a window behind them (``unfold``) or without ``dims``.
    """
    # A sum over the pinned dimensions keeps who else is there, and forgets the positions that no longer exist.
    result = ctx.reduce(label, dims)
    if len(shape) < label.ndim:
        return result
    for dim in sorted(dims):
        result = label_dims.insert_pinned(result, dim, shape[dim])
    if len(shape) > label.ndim:
        result = label_dims.insert_pinned(result, label.ndim, shape[-1])
    return result


@rule(
    "tril triu diagonal diag_embed diag _linalg_svd linalg_inv_ex cholesky linalg_cholesky_ex"
)
def square(ctx: Context, op: Operation) -> Results:
    """Both of two dimensions are positions, the last two if none are given."""
    matrix = "self" if op.has_tensor("self") else "A"
    label = op.label(matrix)
    given = [-2, -1]
    if op.get("dim1") is not None:
        given = [op["dim1"], op["dim2"]]
    dims = dims_of(given, label.ndim)
    label = ctx.pin(label, dims, f"{op.name} depends on positions")
    # A triangle of the same shape still has its rows and columns in their places.
    if op.name in ("aten.tril", "aten.triu"):
        return [label]
    # The results have other dimensions, so everything else is pinned too.
    return unknown(ctx, op.node)
