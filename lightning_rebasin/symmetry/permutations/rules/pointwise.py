"""Pointwise operations: operands are joined over their broadcast dimensions.

``x + bias`` with a 2×3 tensor and a vector of 3 is the join ``ab, b -> ab``: the elements of the bias are the columns
of ``x``.  Whether the operation is ``relu``, ``tanh`` or ``gelu`` does not matter, because each position is computed by
itself.  An operation that torch tags as pointwise, as it does ``relu``, needs no entry here: ``run_rules.py`` then
takes this rule.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lightning_rebasin.symmetry.permutations import label_dims, labels
from lightning_rebasin.symmetry.permutations.labels import Label
from lightning_rebasin.symmetry.permutations.rules.base import Context, Results
from lightning_rebasin.symmetry.permutations.rules.operation import Operation
from lightning_rebasin.symmetry.permutations.rules.registry import rule
from lightning_rebasin.symmetry.trace.tape import Ref


@rule(
    "where masked_fill clone _to_copy to type_as lift_fresh lift",
    "_prelu_kernel prelu hardtanh celu elu selu gelu silu mish softplus leaky_relu relu6 rrelu threshold",
    "hardswish hardsigmoid log_sigmoid_forward special_erf logit heaviside",
    "native_dropout dropout alpha_dropout _fused_dropout",
    "rsub lerp addcmul addcdiv fmod remainder floor_divide ldexp clamp nan_to_num",
    "isnan isinf bitwise_and logical_and",
    "_conj conj conj_physical resolve_conj resolve_neg _neg_view real imag polar complex",
    "huber_loss mse_loss masked_scatter_backward quantize_per_tensor dequantize",
)
def pointwise(ctx: Context, op: Operation) -> Results:
    """All tensor arguments meet position by position."""
    return [broadcast(ctx, op.tensors, shape) for shape in op.out_shapes]


def broadcast(
    ctx: Context, refs: Sequence[Ref], shape: tuple[int, ...]
) -> Label:
    """Join tensors that broadcast to ``shape``."""
    if 0 in shape:
        # One of several results, which has no position: there is nothing to join.
        return labels.fixed(shape)
    operands = []
    for ref in refs:
        label = ctx.label(ref)
        operands.append((label, from_right(label.ndim)))
    out = from_right(len(shape))
    joined = ctx.join(operands, out)
    # A dimension that no operand has holds copies.
    return label_dims.expand(joined, shape)


def from_right(ndim: int) -> range:
    """Letters for broadcasting: dimensions counted from the right.

    Args:
        ndim: Number of dimensions.

    Example:
        >>> list(from_right(3)), list(from_right(1))
        ([3, 2, 1], [1])
    """
    return range(ndim, 0, -1)


@rule("copy")
def copy(ctx: Context, op: Operation) -> Results:
    """``self.copy_(src)``: only the source counts."""
    return [broadcast(ctx, [op["src"]], op.out_shape)]


@rule(
    "zeros_like ones_like full_like empty_like",
    "new_zeros new_ones new_full new_empty new_empty_strided",
    "zeros ones full empty empty_strided empty_permuted",
    "fill zero",
)
def filled(ctx: Context, op: Operation) -> Results:
    """Constant tensors; ``fill`` may take its number from a tensor."""
    # The result is one number everywhere, but which number is decided by the value.
    for value in op.labels("value"):
        ctx.use(value)
    return [labels.constant(op.out_shape)]


@rule(
    "rand randn randint rand_like randn_like randint_like randperm",
    "bernoulli normal uniform exponential random multinomial poisson",
    "arange linspace eye tril_indices triu_indices scalar_tensor hann_window",
    "nonzero masked_select bincount histc searchsorted bucketize unique_dim _unique2",
    "nll_loss_forward nll_loss2d_forward _ctc_loss multi_margin_loss",
)
def positional(ctx: Context, op: Operation) -> Results:
    """Ranges and random numbers: every position is its own."""
    ctx.pin_all(op.tensors, f"{op.name} depends on positions")
    return op.fixed_results()


@rule("glu")
def glu(ctx: Context, op: Operation) -> Results:
    """Halves of one dimension meet position by position."""
    label = op.label()
    dim = op.dim(label.ndim)
    half = label.shape[dim] // 2
    index = np.arange(half)
    # Of 6 channels number 0 meets number 3: whatever moves one half moves the other alike.
    first = ctx.take(label, dim, index)
    second = ctx.take(label, dim, index + half)
    return [ctx.meet(first, second)]
