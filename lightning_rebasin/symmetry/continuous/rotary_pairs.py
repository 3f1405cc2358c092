"""Pairs of units in the heads of one product of queries and keys.

What is known of a query and of a key is from which columns of their projections each coordinate comes (:mod:`.turns`).
Two coordinates that come from the same two columns are a rotary pair.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

from lightning_rebasin.symmetry.continuous import operations as ops
from lightning_rebasin.symmetry.continuous.operations import Limit
from lightning_rebasin.symmetry.continuous.turns import Origins, codes
from lightning_rebasin.symmetry.trace.tape import Node, Ref, Tape


@final
@dataclass(frozen=True)
class Meeting:
    """A product of queries and keys."""

    tape: Tape
    node: Node
    query: int
    key: int


def queries_and_keys(node: Node) -> tuple[int, int] | None:
    """The operands of an operation that may be a product of queries and keys."""
    if node.op in ops.ATTENTION:
        names = ("query", "key")
    elif node.op in ("aten.bmm", "aten.baddbmm", "aten.mm"):
        names = ops.CONTRACTED[node.op][:2]
    else:
        return None
    query, key = (node.arguments.get(name) for name in names)
    if isinstance(query, Ref) and isinstance(key, Ref):
        return query.value, key.value
    return None


@final
@dataclass(frozen=True)
class Heads:
    """Columns of projections, a row for each head and for each pair of units two entries.

    Args:
        keys: Columns of the keys, each key head once.
        queries: For each key head the columns of its queries: ``(key heads, queries, units)``.
    """

    keys: Tensor
    queries: Tensor


def find_pairs(meeting: Meeting, query: Origins, key: Origins) -> Heads | None:
    """The pairs of each key head and of its queries; ``None`` if nothing is turned.

    Raises:
        Limit: What is turned are no pairs.
    """
    if query.is_plain and key.is_plain:
        return None
    both = [
        _by_head(meeting, origins, side)
        for side, origins in enumerate((query, key))
    ]
    (low_q, high_q), (low_k, high_k) = both
    shape = np.broadcast_shapes(low_q.shape, low_k.shape)
    low_q, high_q, low_k, high_k = (
        t.expand(shape).reshape(-1, shape[-1])
        for t in (low_q, high_q, low_k, high_k)
    )
    found: dict[tuple[int, ...], dict[tuple[int, ...], None]] = {}
    for row in range(len(low_k)):
        order = _paired(
            low_k[row].tolist(), high_k[row].tolist(), meeting.node
        )
        keys = _units(low_k[row], high_k[row], order)
        queries = _units(low_q[row], high_q[row], order)
        if len(set(queries)) < len(queries):
            raise Limit(
                f"queries and keys are not turned alike at {meeting.node.where}"
            )
        found.setdefault(keys, {})[queries] = None
    if len({len(queries) for queries in found.values()}) != 1:
        raise Limit("key heads have different numbers of queries")
    keys_of = torch.tensor(list(found))
    queries_of = torch.tensor([list(queries) for queries in found.values()])
    return Heads(keys_of, queries_of)


def _by_head(
    meeting: Meeting, origins: Origins, side: int
) -> tuple[Tensor, Tensor]:
    """First and last column for each coordinate, which is the last dimension; other dimensions are heads."""
    places = [origins.low, origins.high, origins.code]
    shape = list(meeting.tape.values[(meeting.query, meeting.key)[side]].shape)
    attention = meeting.node.op in ops.ATTENTION
    if side and not attention:
        places = [p.transpose(-1, -2) for p in places]
        shape[-1], shape[-2] = shape[-2], shape[-1]
    if places[0].shape[-2] != 1:
        raise Limit(f"positions are not alike at {meeting.node.where}")
    places = [p.expand(*p.shape[:-1], shape[-1]) for p in places]
    if attention:
        places = [_for_all_queries(meeting, p) for p in places]
    # Compressed apart from each other: what is one number may have several codes.
    full = np.broadcast_shapes(*(p.shape for p in places))
    low, high, code = (p.expand(full) for p in places)
    numbers = codes(int(high.max()) + 1)
    _check_two(low, high, code, numbers, meeting.node)
    return low, high


def _for_all_queries(meeting: Meeting, places: Tensor) -> Tensor:
    """Heads of grouped keys as often as they have queries."""
    queries = meeting.tape.values[meeting.query].shape[-3]
    heads = places.shape[-3]
    if heads in (1, queries) or queries % heads:
        return places
    return places.repeat_interleave(queries // heads, -3)


def _check_two(
    low: Tensor, high: Tensor, code: Tensor, numbers: Tensor, node: Node
) -> None:
    """Raise unless each coordinate comes from one unit or from two, each once."""
    one = numbers[low]
    expected = torch.where(low == high, one, one + numbers[high])
    if not torch.allclose(code, expected, rtol=0, atol=1e-9):
        raise Limit(f"more than two units are mixed before {node.where}")


def _paired(low: list[int], high: list[int], node: Node) -> list[int]:
    """For each pair of units, in order, one coordinate that is made of it."""
    places: dict[tuple[int, int], list[int]] = {}
    for place, pair in enumerate(zip(low, high, strict=True)):
        if pair[0] != pair[1]:
            places.setdefault(pair, []).append(place)
    units = [unit for pair in places for unit in pair]
    alone = len(set(units)) < len(units)
    if alone or any(len(two) != 2 for two in places.values()):
        width = len(low)
        odd = f": a head has the odd width {width}" if width % 2 else ""
        raise Limit(
            f"the units that are turned before {node.where} are no pairs{odd}"
        )
    return [two[0] for _, two in sorted(places.items())]


def _units(low: Tensor, high: Tensor, order: list[int]) -> tuple[int, ...]:
    """The units of all pairs, one pair after the other."""
    both = torch.stack([low[order], high[order]], -1)
    return tuple(both.reshape(-1).tolist())
