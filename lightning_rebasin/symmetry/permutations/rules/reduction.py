"""Reductions: sums, means, extremes.

The column sums of a 2×3 tensor are the join ``rc -> c``: the order of the rows does not matter, that of the columns is
the order of the result.  An extreme may also return *where* it was found, and then the order matters.
"""

from __future__ import annotations

from lightning_rebasin.symmetry.permutations import label_dims
from lightning_rebasin.symmetry.permutations.rules.base import Context, Results
from lightning_rebasin.symmetry.permutations.rules.operation import (
    Operation,
    dims_of,
)
from lightning_rebasin.symmetry.permutations.rules.pointwise import pointwise
from lightning_rebasin.symmetry.permutations.rules.registry import rule

#: Which result holds positions.
_POSITIONS = {
    "aten.argmax": 0,
    "aten.argmin": 0,
    "aten.max": 1,
    "aten.min": 1,
    "aten.median": 1,
    "aten.nanmedian": 1,
    "aten.mode": 1,
}


@rule(
    "sum nansum mean nanmean var std var_mean std_mean prod logsumexp trace",
    "norm linalg_vector_norm count_nonzero all any",
    "amax amin aminmax max min median nanmedian mode argmax argmin",
)
def reduction(ctx: Context, op: Operation) -> Results:
    """Dimensions are reduced away; a position that comes out pins them."""
    if op.has_tensor("other"):
        # ``torch.max(a, b)`` is the larger of both, position by position.
        return pointwise(ctx, op)
    label = op.label()
    dims = dims_of(op.get("dim"), label.ndim)
    if _gives_positions(op):
        label = ctx.pin(label, dims, f"{op.name} gives positions")
    result = ctx.reduce(label, dims)
    if op.get("keepdim"):
        result = label_dims.insert_dims(result, dims)
    return [result for _ in op.results]


def _gives_positions(op: Operation) -> bool:
    """Whether a position that comes out is used, or the diagonal is read."""
    if op.name == "aten.trace":
        return True
    output = _POSITIONS.get(op.name)
    if output is None or output >= len(op.results):
        # ``x.max()`` without a dimension gives no position.
        return False
    return op.needs(output)
