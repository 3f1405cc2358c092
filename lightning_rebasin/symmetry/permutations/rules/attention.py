"""Attention kernels: ``softmax(q kᵀ + mask) v`` over the letters batch, head, target, source, dim.

Step by step these are the rules of a product, a softmax and a product; a kernel does all of it in one operation.  Of
queries with 6 heads and keys with 2 heads, the first three query heads look at the first key head: then the query heads
are viewed as 2×3, key heads × query heads in each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightning_rebasin.symmetry.permutations.align import Letter
from lightning_rebasin.symmetry.permutations.labels import Label
from lightning_rebasin.symmetry.permutations.rules.base import Context, Results
from lightning_rebasin.symmetry.permutations.rules.operation import Operation
from lightning_rebasin.symmetry.permutations.rules.registry import rule


@dataclass(frozen=True)
class _Heads:
    """How the heads of queries and keys belong together.

    Args:
        lead: Letters of the dimensions before the heads.
        key_heads: How many heads keys and values have.
        per_key_head: How many query heads look at each of them.
    """

    lead: Sequence[Letter]
    key_heads: int
    per_key_head: int

    @property
    def of_keys(self) -> list[Letter]:
        """Letters of keys and values but the last two."""
        return [*self.lead, "head"]

    @property
    def of_queries(self) -> list[Letter]:
        """Letters of queries and results but the last two."""
        if self.per_key_head == 1:
            return self.of_keys
        return [*self.of_keys, "query head"]

    def split(self, ctx: Context, label: Label) -> Label:
        """A tensor with one dimension for its query heads, viewed with two where several look at one key head."""
        if self.per_key_head == 1:
            return label
        *lead, heads, rows, columns = label.shape
        both = [self.key_heads, self.per_key_head]
        if heads == 1:
            # A mask with one head for all of them broadcasts over both dimensions.
            both = [1, 1]
        shape = [*lead, *both, rows, columns]
        return ctx.view(label, shape)


@rule(
    "scaled_dot_product_attention _scaled_dot_product_attention_math",
    "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention",
)
def attention(ctx: Context, op: Operation) -> Results:
    """Scaled dot-product attention."""
    query, key, value = op.labels("query", "key", "value")
    if op.get("is_causal"):
        query = _causal(ctx, query)
        key = _causal(ctx, key)
        value = _causal(ctx, value)
    last = query.ndim - 1
    op.observe(0, "query", query, [last])
    op.observe(1, "key", key, [last])
    heads = _heads(query, key)
    query = heads.split(ctx, query)

    batch = heads.of_queries
    of_scores = [*batch, "target", "source"]
    of_query = [*batch, "target", "dim"]
    of_key = [*heads.of_keys, "source", "dim"]
    operands = [(query, of_query), (key, of_key)]
    scores = ctx.join(operands, of_scores, batch)
    for mask in op.labels("attn_mask", "attn_bias"):
        scores = _masked(ctx, heads, scores, of_scores, mask)
    scores = ctx.normalise(scores, [scores.ndim - 1])

    of_value = [*heads.of_keys, "source", "value dim"]
    of_mixed = [*batch, "target", "value dim"]
    operands = [(scores, of_scores), (value, of_value)]
    mixed = ctx.join(operands, of_mixed, batch)
    result = ctx.view(mixed, op.out_shape)
    # Log-sums and random states follow, which no network reads.
    return [result, *op.fixed_results(1)]


def _causal(ctx: Context, label: Label) -> Label:
    """A mask that the kernel makes itself: the order of targets and sources matters."""
    return ctx.pin(label, [label.ndim - 2], "causal attention")


def _heads(query: Label, key: Label) -> _Heads:
    """How the heads of queries and keys belong together."""
    *lead, query_heads, _, _ = query.shape
    key_heads = key.shape[-3]
    per_key_head = query_heads // key_heads
    letters = range(len(lead))
    return _Heads(letters, key_heads, per_key_head)


def _masked(
    ctx: Context,
    heads: _Heads,
    scores: Label,
    letters: Sequence[Letter],
    mask: Label,
) -> Label:
    """Scores joined with a mask that broadcasts to them."""
    if mask.ndim >= 3:
        mask = heads.split(ctx, mask)
    missing = len(letters) - mask.ndim
    of_mask = letters[missing:]
    return ctx.join([(scores, letters), (mask, of_mask)], letters)
