"""Matrix products, attention kernels and convolutions: joins with contracted letters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_rebasin.symmetry.permutations import labels
from lightning_rebasin.symmetry.permutations.join import Letter
from lightning_rebasin.symmetry.permutations.labels import Label
from lightning_rebasin.symmetry.permutations.rules.base import Context, rule
from lightning_rebasin.symmetry.trace.tape import Node, Ref

#: For each product the letters of its operands, the addend first where there is one, and of its result.
_PRODUCTS = {
    "aten.mm": (("self", "ik"), ("mat2", "kj"), "ij"),
    "aten.bmm": (("self", "bik"), ("mat2", "bkj"), "bij"),
    "aten.mv": (("self", "ik"), ("vec", "k"), "i"),
    "aten.dot": (("self", "k"), ("tensor", "k"), ""),
    "aten.vdot": (("self", "k"), ("other", "k"), ""),
    "aten.addmm": (("mat1", "ik"), ("mat2", "kj"), "ij"),
    "aten.addmv": (("mat", "ik"), ("vec", "k"), "i"),
    "aten.baddbmm": (("batch1", "bik"), ("batch2", "bkj"), "bij"),
    "aten.addbmm": (("batch1", "bik"), ("batch2", "bkj"), "ij"),
    "aten.addr": (("vec1", "i"), ("vec2", "j"), "ij"),
    "aten._addmm_activation": (("mat1", "ik"), ("mat2", "kj"), "ij"),
}


@rule("mm bmm mv dot vdot addmm addmv baddbmm addbmm addr _addmm_activation")
def product(ctx: Context, node: Node) -> list[Label]:
    """Matrix products, with an addend that broadcasts to the result."""
    (left, left_letters), (right, right_letters), out = _PRODUCTS[node.op]
    operands: list[tuple[Label, Sequence[Letter]]] = []
    for number, (name, letters) in enumerate(
        ((left, left_letters), (right, right_letters))
    ):
        ref = node.arguments[name]
        label = ctx.label(ref)
        contracted = [d for d, x in enumerate(letters) if x not in out]
        ctx.observe(node, number, ref, label, contracted)
        operands.append((label, letters))
    if "add" in node.op:
        addend = ctx.label(node.arguments["self"])
        operands.append((addend, out[len(out) - len(addend.dims) :]))
    return [ctx.join(operands, out, batch=["b"])]


@rule("_cdist_forward cdist")
def distances(ctx: Context, node: Node) -> list[Label]:
    """Distances between rows: the features are contracted."""
    first, second = (
        ctx.label(node.arguments["x1"]),
        ctx.label(node.arguments["x2"]),
    )
    lead = [("lead", k) for k in range(len(first.dims) - 2)]
    return [
        ctx.join(
            [(first, [*lead, "p", "m"]), (second, [*lead, "r", "m"])],
            [*lead, "p", "r"],
            batch=lead,
        )
    ]


@rule(
    "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention scaled_dot_product_attention "
    "_scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention _scaled_dot_product_attention_math"
)
def attention(ctx: Context, node: Node) -> list[Label]:
    """Scaled dot-product attention: ``softmax(q kᵀ + mask) v`` over letters (batch, head, target, source, dim)."""
    given = node.arguments
    query, key, value = (
        ctx.label(given[name]) for name in ("query", "key", "value")
    )
    if given.get("is_causal"):
        query, key, value = (
            ctx.pin(x, [len(x.dims) - 2], "causal attention")
            for x in (query, key, value)
        )
    for number, (name, label) in enumerate((("query", query), ("key", key))):
        ctx.observe(node, number, given[name], label, [len(label.dims) - 1])
    shape = query.shape
    lead = [("lead", k) for k in range(len(shape) - 3)]
    heads, kv_heads = shape[-3], key.shape[-3]
    if heads != kv_heads:
        view = (*shape[:-3], kv_heads, heads // kv_heads, *shape[-2:])
        query, group = labels.view(query, view, ctx.store), ["g"]
    else:
        group = []
    batch = [*lead, "h", *group]
    operands = [(query, [*batch, "t", "d"]), (key, [*lead, "h", "s", "d"])]
    scores = ctx.join(operands, [*batch, "t", "s"], batch=batch)
    mask = given.get("attn_mask") or given.get("attn_bias")
    if isinstance(mask, Ref):
        label = ctx.label(mask)
        if group and len(label.dims) >= 3:
            size = label.shape[-3]
            split = (kv_heads, heads // kv_heads) if size > 1 else (1, 1)
            label = labels.view(
                label,
                (*label.shape[:-3], *split, *label.shape[-2:]),
                ctx.store,
            )
        letters = [*batch, "t", "s"]
        scores = ctx.join(
            [
                (scores, letters),
                (label, letters[len(letters) - len(label.dims) :]),
            ],
            letters,
        )
    scores = ctx.normalise(scores, [len(scores.dims) - 1])
    result = ctx.join(
        [(scores, [*batch, "t", "s"]), (value, [*lead, "h", "s", "e"])],
        [*batch, "t", "e"],
        batch=batch,
    )
    out = ctx.out_shape(node)
    rest = [
        labels.fixed(ctx.out_shape(node, i))
        for i in range(1, len(node.outputs))
    ]
    return [labels.view(result, out, ctx.store), *rest]


@rule("convolution _convolution")
def convolution(ctx: Context, node: Node) -> list[Label]:
    """Convolutions of any kind: channels viewed as (group, channel), kernel positions pinned."""
    given = node.arguments
    image, weight = ctx.label(given["input"]), ctx.label(given["weight"])
    space = len(weight.dims) - 2
    groups = int(given["groups"])
    # A kernel of one position does not look at neighbours: places in the image stay interchangeable.
    point = [_is_point(given, weight.shape, d) for d in range(space)]
    mixing = [2 + d for d in range(space) if not point[d]]
    image = ctx.pin(image, mixing, "position in the image")
    weight = ctx.pin(weight, range(2, 2 + space), "position in the kernel")
    ctx.observe(node, 0, given["input"], image, [1])

    # (n, channels, …) as (n, group, channel, …), and the weight's first dimension likewise
    image = _grouped(ctx, image, 1, groups)
    weight = _grouped(ctx, weight, 0, groups)
    places = [("place", d) for d in range(space)]
    kernel = [("kernel", d) for d in range(space)]
    channels = "gio" if given["transposed"] else "goi"
    operands: list[tuple[Label, Sequence[Letter]]] = [
        (image, ["n", "g", "i", *places]),
        (weight, [*channels, *kernel]),
    ]
    if isinstance(given.get("bias"), Ref):
        operands.append(
            (_grouped(ctx, ctx.label(given["bias"]), 0, groups), "go")
        )
    kept = [
        letter
        for letter, is_point in zip(places, point, strict=True)
        if is_point
    ]
    result = ctx.join(operands, ["n", "g", "o", *kept], batch=["g"])
    out_shape = ctx.out_shape(node)
    for dim in mixing:
        result = labels.insert_pinned(result, dim + 1, out_shape[dim])
    return [labels.view(result, out_shape, ctx.store)]


def _is_point(
    given: Mapping[str, Any], weight_shape: Sequence[int], dim: int
) -> bool:
    """Whether a convolution looks at one position only along a dimension of the image."""
    neutral = {"stride": 1, "padding": 0, "output_padding": 0}
    for name, value in neutral.items():
        setting = given[name]
        # One number may stand for all dimensions.
        own = setting[dim] if len(setting) > dim else setting[0]
        if int(own) != value:
            return False
    return weight_shape[2 + dim] == 1


def _grouped(ctx: Context, label: Label, dim: int, groups: int) -> Label:
    """View one dimension as (group, the rest)."""
    shape = label.shape
    split = (groups, shape[dim] // groups)
    return labels.view(
        label, (*shape[:dim], *split, *shape[dim + 1 :]), ctx.store
    )
