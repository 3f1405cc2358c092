"""Pairs of query and key units under rotary positions.

Rotary positions turn pairs of coordinates of each query and each key by an angle, so the first analysis pins these
coordinates: their order matters.  Complex factors on the pairs commute with the turns all the same.  Which units are a
pair is found by following the projections to the product of queries and keys (:mod:`.turns`).  With grouped queries all
queries of a key head share its factors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import final

from torch import Tensor

from lightning_rebasin.symmetry.continuous.heads import (
    are_free,
    is_pinned,
    parent_of,
)
from lightning_rebasin.symmetry.continuous.operations import Limit
from lightning_rebasin.symmetry.continuous.projections import (
    Projections,
    Rows,
)
from lightning_rebasin.symmetry.continuous.rotary_pairs import (
    Heads,
    Meeting,
    find_pairs,
    queries_and_keys,
)
from lightning_rebasin.symmetry.continuous.turns import Follower, Origins
from lightning_rebasin.symmetry.permutations.rules.base import Context
from lightning_rebasin.symmetry.spec.spec import PermutationSpec
from lightning_rebasin.symmetry.spec.values import Group

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
    projections = Projections(tape)
    follower = Follower(projections)
    for node in tape.live_nodes()[0]:
        operands = queries_and_keys(node)
        if operands is None:
            continue
        if not all(map(projections.are_all_behind, operands)):
            continue
        _look_at(spec, Meeting(tape, node, *operands), follower, found)
    return found


def _look_at(
    spec: PermutationSpec,
    meeting: Meeting,
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
        heads = find_pairs(meeting, query, key)
        if heads is None or are_free(spec, key.rows[0], heads.keys):
            return
        planes = _planes(spec, query, key, heads)
        found.planes.setdefault(planes.group.id, planes)
    except Limit as limit:
        if not follower.projections.is_turned(meeting.query):
            # Units that nothing turns have no pairs.
            return
        why = f"no complex factor for each rotary pair: {limit}"
        for one in rows or follower.projections.behind(
            meeting.query, meeting.key
        ):
            if is_pinned(spec, one):
                found.refused.setdefault((one.tensor, one.dim), why)


def _planes(
    spec: PermutationSpec, query: Origins, key: Origins, heads: Heads
) -> Planes:
    """The new group and where it acts."""
    module = key.rows[0].tensor.rpartition(".")[0]
    name = f"{module or key.rows[0].tensor}/plane"
    parent, order = parent_of(spec, key.rows[0], heads.keys)
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
