"""Pointwise operations: operands are joined over their broadcast dimensions."""

from __future__ import annotations

import numpy as np

from lightning_rebasin.symmetry.permutations import labels
from lightning_rebasin.symmetry.permutations.labels import Label
from lightning_rebasin.symmetry.permutations.rules.base import Context, rule
from lightning_rebasin.symmetry.trace.tape import Node, Ref, references


def from_right(label: Label) -> list[int]:
    """Letters for broadcasting: dimensions counted from the right.

    A bias of 3 and an activation of (2, 3) have the letters ``[1]`` and ``[2, 1]``: the bias meets the columns.
    """
    return [len(label.dims) - d for d in range(len(label.dims))]


def broadcast(ctx: Context, refs: list[Ref], shape: tuple[int, ...]) -> Label:
    """Join tensors that broadcast to ``shape``."""
    operands = []
    for ref in refs:
        label = ctx.label(ref)
        operands.append((label, from_right(label)))
    letters = [len(shape) - d for d in range(len(shape))]
    return labels.expand(ctx.join(operands, letters), shape)


@rule(
    "where masked_fill clone _to_copy to lift_fresh lift _prelu_kernel prelu hardtanh "
    "celu elu selu gelu silu mish native_dropout dropout alpha_dropout rsub lerp addcmul addcdiv clamp nan_to_num "
    "logit isnan isinf bitwise_and logical_and threshold _conj conj conj_physical resolve_conj resolve_neg real imag "
    "_neg_view polar complex fmod remainder floor_divide heaviside special_erf softplus leaky_relu relu6 "
    "_fused_dropout view_as_real_copy ldexp masked_scatter_backward quantize_per_tensor dequantize "
    "hardswish hardsigmoid log_sigmoid_forward huber_loss mse_loss type_as rrelu"
)
def pointwise(ctx: Context, node: Node) -> list[Label]:
    """All tensor arguments meet position by position."""
    refs = list(references(node.arguments))
    shapes = [ctx.out_shape(node, i) for i in range(len(node.outputs))]
    return [
        labels.fixed(shape) if 0 in shape else broadcast(ctx, refs, shape)
        for shape in shapes
    ]


@rule("copy")
def copy(ctx: Context, node: Node) -> list[Label]:
    """``self.copy_(src)``: only the source counts."""
    return [broadcast(ctx, [node.arguments["src"]], ctx.out_shape(node))]


@rule(
    "zeros_like ones_like full_like empty_like new_zeros new_ones new_full new_empty fill zero empty zeros ones full "
    "empty_strided new_empty_strided empty_permuted"
)
def filled(ctx: Context, node: Node) -> list[Label]:
    """Constant tensors; ``fill`` may take its number from a tensor."""
    value = node.arguments.get("value")
    if isinstance(value, Ref):
        ctx.use(ctx.label(value))
    return [labels.constant(ctx.out_shape(node))]


@rule(
    "rand randn randint rand_like randn_like randint_like bernoulli normal uniform exponential random multinomial "
    "arange linspace eye tril_indices triu_indices randperm scalar_tensor hann_window poisson "
    "nonzero masked_select bincount histc searchsorted bucketize unique_dim _unique2 "
    "nll_loss_forward nll_loss2d_forward _ctc_loss multi_margin_loss"
)
def positional(ctx: Context, node: Node) -> list[Label]:
    """Ranges and random numbers: every position is its own."""
    ctx.pin_all(
        list(references(node.arguments)), f"{node.op} depends on positions"
    )
    return [
        labels.fixed(ctx.out_shape(node, i)) for i in range(len(node.outputs))
    ]


@rule("glu")
def glu(ctx: Context, node: Node) -> list[Label]:
    """Halves of one dimension meet position by position."""
    label = ctx.label(node.arguments["self"])
    dim = node.arguments["dim"] % len(label.dims)
    half = label.shape[dim] // 2
    letters = list(range(len(label.dims)))
    first = labels.take(label, dim, np.arange(half), ctx.store)
    second = labels.take(label, dim, np.arange(half, 2 * half), ctx.store)
    return [ctx.join([(first, letters), (second, letters)], letters)]
