"""The attentions of a tape: queries, keys and values that meet in a kernel, or in products around a softmax."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

from lightning_rebasin.symmetry.continuous import operations as ops
from lightning_rebasin.symmetry.continuous.projections import (
    Projections,
    value_of,
)
from lightning_rebasin.symmetry.continuous.roles import MOVES
from lightning_rebasin.symmetry.trace.tape import Node, references

_SOFTMAXES = ops.names("_softmax _safe_softmax softmax")
#: What may happen to scores before the softmax: what is added to all of a query alike stays so.
_OF_SCORES = MOVES | ops.names("mul div add sub masked_fill where")
_PRODUCTS = ops.names("bmm baddbmm mm")


@final
@dataclass(frozen=True)
class Attention:
    """One attention.

    Args:
        key: The value that holds its keys; −1 if that is not known.
        value: The value that holds its values.
        output: What comes out.
        fused: Whether keys stand in rows, as in a kernel; else they are turned for a product.
    """

    key: int
    value: int
    output: int
    fused: bool


def attentions_of(projections: Projections) -> Iterator[Attention]:
    """All attentions of a tape.

    Args:
        projections: Its projections.
    """
    consumers = consumers_of(projections)
    for node in projections.tape.live_nodes()[0]:
        if node.op in ops.ATTENTION:
            key, value = value_of(node, "key"), value_of(node, "value")
            yield Attention(key, value, node.outputs[0], fused=True)
        elif node.op in _SOFTMAXES and _is_over_last(projections, node):
            yield from _by_hand(projections, consumers, node)


def consumers_of(projections: Projections) -> dict[int, list[Node]]:
    """For each value the live operations that use it."""
    found: dict[int, list[Node]] = {}
    for node in projections.tape.live_nodes()[0]:
        for ref in references(node.arguments):
            found.setdefault(ref.value, []).append(node)
    return found


def next_product(
    consumers: dict[int, list[Node]], value: int
) -> tuple[Node, int] | None:
    """The only contraction that a value goes into, perhaps moved, and the value that goes in; ``None`` if several."""
    found: list[tuple[Node, int]] = []
    pending = [value]
    while pending:
        own = pending.pop()
        for node in consumers.get(own, ()):
            if node.op in ops.CONTRACTED:
                found.append((node, own))
            elif node.op in MOVES:
                pending += node.outputs
            else:
                return None
    return found[0] if len(found) == 1 else None


def _is_over_last(projections: Projections, softmax: Node) -> bool:
    """Whether a softmax runs over the last dimension."""
    rank = len(projections.tape.values[softmax.outputs[0]].shape)
    dim = softmax.arguments.get("dim")
    return isinstance(dim, int) and dim % rank == rank - 1


def _by_hand(
    projections: Projections, consumers: dict[int, list[Node]], softmax: Node
) -> Iterator[Attention]:
    """The attention around one softmax, if it is one."""
    mixing = next_product(consumers, softmax.outputs[0])
    if mixing is None or mixing[0].op not in _PRODUCTS:
        return
    node, weights = mixing
    left, right, _ = ops.CONTRACTED[node.op]
    if value_of(node, left) != weights:
        return
    scores = _products_behind(projections, value_of(softmax, "self"))
    key = -1
    if len(scores) == 1:
        _, turned, _ = ops.CONTRACTED[scores[0].op]
        key = value_of(scores[0], turned)
    yield Attention(key, value_of(node, right), node.outputs[0], fused=False)


def _products_behind(projections: Projections, value: int) -> list[Node]:
    """Products of queries and keys that are scaled, masked and moved into a value."""
    found = []
    pending, seen = [value], {value}
    while pending:
        node = projections.makers.get(pending.pop())
        if node is None:
            continue
        if node.op in _PRODUCTS:
            found.append(node)
        elif node.op in _OF_SCORES:
            more = {ref.value for ref in references(node.arguments)} - seen
            seen |= more
            pending += more
    return found
