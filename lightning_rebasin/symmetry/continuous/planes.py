"""Pairs of query and key units under rotary positions.

Rotary positions turn pairs of coordinates of each query and each key by an angle, so the first analysis pins these
coordinates: their order matters.  Complex factors on the pairs commute with the turns all the same.  Which coordinates
are a pair depends on the layout, halves ``(i, i + d/2)`` or neighbours ``(2i, 2i + 1)``; both are proposed, and the
gate knows.

The weights are found by walking back from the operands of the product ``q·k`` to the products that made them.  With
grouped queries all queries of a key head share its factors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from lightning_rebasin.symmetry.continuous import operations as ops
from lightning_rebasin.symmetry.permutations.rules.base import Context
from lightning_rebasin.symmetry.spec.spec import PermutationSpec
from lightning_rebasin.symmetry.spec.values import AxisMap, Component, Group
from lightning_rebasin.symmetry.trace.tape import Node, Ref, Tape, references

KIND = "plane"


@final
@dataclass(frozen=True)
class Planes:
    """Rotary pairs of one attention.

    Args:
        id: Name of the new group.
        parent: The key heads; ``None`` for a single head.
        size: Units in a head.
        queries: Tensors that make queries, whose rows are heads × units.
        keys: Tensors that make keys.
        layout: Unit 2p and 2p + 1 of the group are these rows of a head.
    """

    id: str
    parent: str | None
    size: int
    queries: tuple[str, ...]
    keys: tuple[str, ...]
    layout: Tensor

    def group(self, spec: PermutationSpec) -> Group:
        """The new group."""
        parent = None if self.parent is None else spec.groups[self.parent]
        return Group(self.id, self.size, parent, KIND)


def find_planes(
    spec: PermutationSpec, passes: Sequence[Context]
) -> dict[str, list[Planes]]:
    """Proposals by the name of the new group: for each attention both layouts.

    Args:
        spec: Permutations only.
        passes: The last pass of the first analysis over each tape; the first one decides.
    """
    found: dict[str, list[Planes]] = {}
    if not passes:
        return found
    tape = passes[0].tape
    makers: dict[int, Node] = {}
    for node in tape.nodes:
        makers.update(dict.fromkeys(node.outputs, node))
    live = tape.live_nodes()[0]
    for node in live:
        if node.op in ops.ATTENTION:
            proposals = _of_attention(spec, tape, makers, node)
            for planes in proposals:
                found.setdefault(planes.id, []).append(planes)
    return found


def _of_attention(
    spec: PermutationSpec, tape: Tape, makers: dict[int, Node], node: Node
) -> Iterator[Planes]:
    """The pairs of one attention, in both layouts; none if its heads do not consist of pairs."""
    query, key = node.arguments["query"], node.arguments["key"]
    size = tape.values[query.value].shape[-1]
    queries = _weights_behind(tape, makers, query)
    keys = _weights_behind(tape, makers, key)
    if size % 2 or not queries or not keys:
        return
    parent = _shared_heads(spec, keys, size)
    if not _fits(spec, parent, size, queries, keys):
        return
    first = keys[0]
    module = first.rpartition(".")[0]
    name = f"{module or first}/plane"
    for layout in _layouts(size):
        yield Planes(name, parent, size, queries, keys, layout)


def _layouts(size: int) -> Iterator[Tensor]:
    """Halves, and neighbours."""
    order = torch.arange(size)
    yield order.reshape(2, -1).T.reshape(-1)
    yield order


def _weights_behind(
    tape: Tape, makers: dict[int, Node], operand: Ref
) -> tuple[str, ...]:
    """The tensors of the products that made an operand, their biases included; empty if there are none."""
    pending = [operand.value]
    seen = set(pending)
    found: dict[str, None] = {}
    while pending:
        value = pending.pop()
        node = makers.get(value)
        if node is None:
            continue
        if node.op in ops.CONTRACTED:
            for factor in _factors(node):
                weight = _state_behind(tape, makers, factor)
                found.update(weight)
            continue
        for ref in references(node.arguments):
            other = ref.value
            if other not in seen:
                seen.add(other)
                pending.append(other)
    return tuple(found)


def _factors(node: Node) -> Iterator[int]:
    """What a product multiplies its input with, and what it adds."""
    _, right, added = ops.CONTRACTED[node.op]
    for name in (right, added):
        given = node.arguments.get(name)
        if isinstance(given, Ref):
            yield given.value


def _state_behind(
    tape: Tape, makers: dict[int, Node], value: int
) -> dict[str, None]:
    """The tensor of the state that a value is, perhaps transposed."""
    while tape.values[value].origin != "state":
        node = makers.get(value)
        if node is None or node.op not in ops.COPIES:
            return {}
        behind = [ref.value for ref in references(node.arguments)]
        value = behind[0]
    return {tape.values[value].name: None}


def _shared_heads(
    spec: PermutationSpec, keys: Sequence[str], size: int
) -> str | None:
    """The group of key heads: it orders blocks of ``size`` rows of the weight that makes keys."""
    axis_map = spec.maps.get(keys[0])
    for component in axis_map.components if axis_map is not None else ():
        if component.sites == (0,) and component.index.shape[1] == size:
            return component.group
    return None


def _fits(
    spec: PermutationSpec,
    parent: str | None,
    size: int,
    queries: Sequence[str],
    keys: Sequence[str],
) -> bool:
    """Whether all rows of all these tensors are heads × units."""
    if parent is None:
        # A single head, or heads whose order matters: only the former is one set of units.
        rows = [spec.tensors[name].shape[0] for name in (*queries, *keys)]
        return all(count == size for count in rows)
    heads = spec.groups[parent].members
    for name in (*queries, *keys):
        count = spec.tensors[name].shape[0]
        component = _blocks_of(spec.maps.get(name), size)
        if component is None or count % (heads * size):
            return False
        group = spec.groups[component.group]
        own = group if group.id == parent else group.parent
        if own is None or own.id != parent:
            return False
    return True


def _blocks_of(axis_map: AxisMap | None, size: int) -> Component | None:
    """The component that orders blocks of ``size`` rows, if they stand in order along the whole first dimension."""
    if axis_map is None or len(axis_map.sites[0]) != 1:
        return None
    rows = axis_map.shape[0]
    for component in axis_map.components:
        if component.sites != (0,):
            continue
        index = component.index
        whole = index.numel() == rows
        blocks = index.shape[1] == size
        if whole and blocks:
            flat = index.reshape(-1)
            in_order = torch.equal(flat, torch.arange(rows))
            return component if in_order else None
    return None


def with_planes(spec: PermutationSpec, planes: Planes) -> PermutationSpec:
    """The spec with the pairs of one attention.

    Args:
        spec: Any spec in which the heads are permutations.
        planes: What to add.
    """
    group = planes.group(spec)
    maps = dict(spec.maps)
    for names, power in ((planes.queries, 1), (planes.keys, -1)):
        for name in names:
            maps[name] = _with_rows(spec, name, planes, power)
    groups: dict[str, Group] = {}
    for known in spec.groups.values():
        groups[known.id] = known
        if known.id == planes.parent:
            groups[group.id] = group
    groups.setdefault(group.id, group)
    return replace(spec, groups=groups, maps=maps)


def _with_rows(
    spec: PermutationSpec, name: str, planes: Planes, power: int
) -> AxisMap:
    """The map of a tensor whose rows are key heads × queries of each × units."""
    shape = spec.tensors[name].shape
    size = planes.size
    heads = 1
    if planes.parent is not None:
        heads = spec.groups[planes.parent].members
    each = shape[0] // (heads * size)
    factors = (heads, each, size)
    own = tuple(factor for factor in factors if factor > 1)
    # Sites of the rows: heads first, units last; the queries of a head stand between them.
    last = len(own) - 1
    over = (0, last) if heads > 1 else (last,)
    places = torch.arange(heads * size)
    grid = places.reshape(heads, size)
    in_layout = grid[:, planes.layout]
    index = in_layout.reshape(-1, 1)
    pairs = Component(planes.id, over, index, power)
    old = spec.maps.get(name)
    if old is None:
        rest = tuple((count,) for count in shape[1:])
        return AxisMap(name, (own, *rest), (pairs,))
    shift = len(own) - 1
    components = [pairs]
    for component in old.components:
        if component.sites != (0,):
            moved = tuple(site + shift for site in component.sites)
            kept = replace(component, sites=moved)
            components.append(kept)
        elif component.group != planes.parent and each > 1:
            kept = _queries_of_heads(component, heads, each)
            components.append(kept)
    sites = (own, *old.sites[1:])
    return AxisMap(name, sites, tuple(components))


def _queries_of_heads(
    component: Component, heads: int, each: int
) -> Component:
    """The order of the queries of each key head stays a group of its own."""
    places = torch.arange(heads * each)
    index = places[:, None]
    sites = (0, 1) if heads > 1 else (0,)
    return replace(component, sites=sites, index=index)
