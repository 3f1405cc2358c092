"""Pairs of query and key units under rotary positions.

Rotary positions turn pairs of coordinates of each query and each key by an angle, so the first analysis pins these
coordinates: their order matters.  Complex factors on the pairs commute with the turns all the same.  Which units are a
pair is found by following the projections to the product of queries and keys (:mod:`.turns`).  With grouped queries all
queries of a key head share its factors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from lightning_rebasin.symmetry.continuous import operations as ops
from lightning_rebasin.symmetry.continuous.operations import Limit
from lightning_rebasin.symmetry.continuous.turns import (
    Follower,
    Origins,
    Rows,
    codes,
)
from lightning_rebasin.symmetry.permutations.rules.base import Context
from lightning_rebasin.symmetry.spec.spec import PermutationSpec
from lightning_rebasin.symmetry.spec.values import AxisMap, Component, Group
from lightning_rebasin.symmetry.trace.tape import Node, Ref, Tape

KIND = "plane"


@final
@dataclass(frozen=True)
class Place:
    """Where the pairs stand in one tensor.

    Args:
        tensor: Its name.
        dim: Its dimension.
        index: ``(members of the group, copies)``: positions along the dimension.
        power: +1 for queries, −1 for keys.
    """

    tensor: str
    dim: int
    index: Tensor
    power: int


@final
@dataclass(frozen=True)
class Planes:
    """Rotary pairs of one attention: units 2p and 2p + 1 of a head are pair p.

    Args:
        group: The new group, inside the key heads if they are one.
        places: Where it acts.
    """

    group: Group
    places: tuple[Place, ...]


@final
@dataclass
class FoundPlanes:
    """Proposals by the name of the new group, and for tensors whose pairs cannot be multiplied why."""

    planes: dict[str, Planes] = field(default_factory=dict)
    refused: dict[tuple[str, int], str] = field(default_factory=dict)

    def refuse(self, planes: Planes, why: str) -> None:
        """Say for all tensors of a proposal why it does not hold."""
        for place in planes.places:
            reason = f"no complex factor for each rotary pair: {why}"
            self.refused[(place.tensor, place.dim)] = reason


def find_planes(
    spec: PermutationSpec, passes: Sequence[Context]
) -> FoundPlanes:
    """Look for rotary pairs in every product of queries and keys.

    Args:
        spec: Permutations only.
        passes: The last pass of the first analysis over each tape; the first one decides.
    """
    found = FoundPlanes()
    if not passes:
        return found
    tape = passes[0].tape
    follower = Follower(tape)
    for node in tape.live_nodes()[0]:
        operands = _queries_and_keys(node)
        if operands is None:
            continue
        if not all(map(follower.reaches_projections_only, operands)):
            continue
        _look_at(spec, _Meeting(tape, node, *operands), follower, found)
    return found


@final
@dataclass(frozen=True)
class _Meeting:
    """A product of queries and keys."""

    tape: Tape
    node: Node
    query: int
    key: int


def _queries_and_keys(node: Node) -> tuple[int, int] | None:
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


def _look_at(
    spec: PermutationSpec,
    meeting: _Meeting,
    follower: Follower,
    found: FoundPlanes,
) -> None:
    """Add what one product of queries and keys allows, or why it allows nothing."""
    rows: list[Rows] = []
    try:
        query, key = follower.of(meeting.query), follower.of(meeting.key)
        if query is None or key is None:
            return
        rows = [*query.rows, *key.rows]
        heads = _pairs(meeting, query, key)
        if heads is None or _are_free(spec, key.rows[0], heads.keys):
            return
        planes = _planes(spec, query, key, heads)
        found.planes.setdefault(planes.group.id, planes)
    except Limit as limit:
        if not follower.is_turned(meeting.query):
            # Units that nothing turns have no pairs.
            return
        why = f"no complex factor for each rotary pair: {limit}"
        for one in rows or follower.projections(meeting.query, meeting.key):
            if _is_pinned(spec, one):
                found.refused.setdefault((one.tensor, one.dim), why)


@final
@dataclass(frozen=True)
class _Heads:
    """Columns of projections, a row for each head and for each pair of units two entries.

    Args:
        keys: Columns of the keys, each key head once.
        queries: For each key head the columns of its queries: ``(key heads, queries, units)``.
    """

    keys: Tensor
    queries: Tensor


def _pairs(meeting: _Meeting, query: Origins, key: Origins) -> _Heads | None:
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
    low_q, high_q, low_k, high_k = (
        t.reshape(-1, t.shape[-1])
        for t in torch.broadcast_tensors(low_q, high_q, low_k, high_k)
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
    return _Heads(keys_of, queries_of)


def _by_head(
    meeting: _Meeting, origins: Origins, side: int
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
    low, high, code = torch.broadcast_tensors(*places)
    numbers = codes(int(high.max()) + 1)
    _check_two(low, high, code, numbers, meeting.node)
    return low, high


def _for_all_queries(meeting: _Meeting, places: Tensor) -> Tensor:
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


def _is_pinned(spec: PermutationSpec, rows: Rows) -> bool:
    """Whether nothing moves along a dimension of a tensor, or some of its units move in blocks only."""
    axis_map = spec.maps.get(rows.tensor)
    if axis_map is None:
        return True
    moved = [c for c in axis_map.components if _stands(axis_map, c, rows.dim)]
    return not moved or bool(block_groups(spec, rows.tensor, rows.dim))


def _stands(axis_map: AxisMap, component: Component, dim: int) -> bool:
    return any(axis_map.site_dims[site] == dim for site in component.sites)


def block_groups(spec: PermutationSpec, tensor: str, dim: int) -> list[str]:
    """Groups of which each member is a block of neighbouring positions along a dimension of a tensor, such as a head."""
    axis_map = spec.maps.get(tensor)
    found: dict[str, None] = {}
    for component in axis_map.components if axis_map is not None else ():
        assert axis_map is not None
        if _stands(axis_map, component, dim):
            own = [s for s in component.sites if axis_map.site_dims[s] == dim]
            # The last site of a dimension counts neighbours.
            inner = max(own) + 1
            beside = axis_map.site_dims[inner : inner + 1] == (dim,)
            index = component.index.sort(1).values
            if beside or bool((index.diff(dim=1) == 1).any()):
                found[component.group] = None
    return list(found)


def _are_free(spec: PermutationSpec, rows: Rows, keys: Tensor) -> bool:
    """Whether the units of a head may be rearranged already: then they are not turned by positions."""
    pair = rows.places[keys[0, :2]]
    for _, member_of in _members(spec, rows):
        first, second = member_of[pair].tolist()
        if first != second and first >= 0 and second >= 0:
            return True
    return False


def _members(
    spec: PermutationSpec, rows: Rows
) -> Iterator[tuple[str, Tensor]]:
    """For each group along a dimension of a tensor, to which member each position belongs; −1 for none."""
    axis_map = spec.maps.get(rows.tensor)
    if axis_map is None or len(axis_map.sites[rows.dim]) != 1:
        return
    site = axis_map.site_dims.index(rows.dim)
    found: dict[str, Tensor] = {}
    for component in axis_map.components:
        if component.sites != (site,):
            continue
        known = found.setdefault(
            component.group, torch.full((axis_map.shape[rows.dim],), -1)
        )
        numbers = torch.arange(len(component.index))[:, None]
        known[component.index] = numbers.expand(component.index.shape)
    yield from found.items()


def _planes(
    spec: PermutationSpec, query: Origins, key: Origins, heads: _Heads
) -> Planes:
    """The new group and where it acts."""
    module = key.rows[0].tensor.rpartition(".")[0]
    name = f"{module or key.rows[0].tensor}/plane"
    parent, order = _parent(spec, key.rows[0], heads.keys)
    keys, queries = heads.keys[order], heads.queries[order]
    count, size = keys.shape
    if parent is None:
        group = Group(name, count * size, None, KIND)
    else:
        group = Group(name, size, spec.groups[parent], KIND)
    places = []
    # (key heads, queries, units) → a row for each unit of each key head, a column for each query
    of_queries = queries.transpose(1, 2).reshape(count * size, -1)
    of_keys = keys.reshape(-1, 1)
    for columns, origins, power in (
        (of_queries, query, 1),
        (of_keys, key, -1),
    ):
        for rows in origins.rows:
            place = Place(rows.tensor, rows.dim, rows.places[columns], power)
            places.append(place)
    return Planes(group, tuple(places))


def _parent(
    spec: PermutationSpec, rows: Rows, keys: Tensor
) -> tuple[str | None, Tensor]:
    """The group of which every key head is a member, and the key heads in its order; all heads are one set without it."""
    for group, member_of in _members(spec, rows):
        members = member_of[rows.places[keys]]
        first = members[:, 0]
        same = bool((members == first[:, None]).all())
        if same and first.unique().numel() == spec.groups[group].members:
            return group, first.argsort()
    return None, torch.arange(len(keys))
