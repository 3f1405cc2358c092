"""A spec with rotary pairs: the axis maps of the tensors that make queries and keys.

The rows of a head, which moved as one block, become pairs of units inside the head.  Where the queries of a key head
are a group of their own, the dimension is split into key heads × queries × units, so that the pairs, which all queries
share, and the queries lie on different sites.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from lightning_rebasin.symmetry.continuous.heads import block_groups
from lightning_rebasin.symmetry.continuous.operations import Limit
from lightning_rebasin.symmetry.continuous.planes import (
    FoundPlanes,
    Place,
    Planes,
)
from lightning_rebasin.symmetry.spec.spec import PermutationSpec
from lightning_rebasin.symmetry.spec.values import AxisMap, Component, Group


def with_planes(spec: PermutationSpec, planes: Planes) -> PermutationSpec:
    """The spec with the pairs of one attention.

    Args:
        spec: Any spec in which the heads are permutations.
        planes: What to add.

    Raises:
        Limit: Another group stands in the same places and is not the heads.
    """
    group = planes.group
    maps = dict(spec.maps)
    by_tensor: dict[tuple[str, int], list[Place]] = {}
    for place in planes.places:
        by_tensor.setdefault((place.tensor, place.dim), []).append(place)
    for (name, _), places in by_tensor.items():
        known = maps.get(name)
        if known is None:
            sites = tuple((size,) for size in spec.tensors[name].shape)
            known = AxisMap(name, sites, ())
        maps[name] = _with_places(known, group, places)
    groups: dict[str, Group] = {}
    for other in spec.groups.values():
        groups[other.id] = other
        if group.parent is not None and other.id == group.parent.id:
            groups[group.id] = group
    groups.setdefault(group.id, group)
    # Pairs are seen nowhere: behind the turn they are no units.
    seen = {**spec.activations, group.id: ()}
    return replace(spec, groups=groups, maps=maps, activations=seen)


def check_planes(spec: PermutationSpec, found: FoundPlanes) -> FoundPlanes:
    """Only the proposals that an axis map can express; the others become refusals."""
    kept: dict[str, Planes] = {}
    for name, planes in found.planes.items():
        try:
            with_planes(spec, planes)
            kept[name] = planes
        except Limit as limit:
            found.refuse(planes, str(limit))
    return FoundPlanes(kept, found.refused)


def with_refusals(
    spec: PermutationSpec, refused: Mapping[tuple[str, int], str]
) -> PermutationSpec:
    """The spec that says of tensors whose units are turned in pairs why nothing more is possible.

    Args:
        spec: The spec.
        refused: Why, by tensor and dimension.
    """
    limits = dict(spec.limits)
    pins = []
    for pin in spec.pinned:
        why = refused.get((pin.tensor, pin.dim))
        pins.append(
            replace(pin, reason=f"{pin.reason}; {why}") if why else pin
        )
    for (name, dim), why in refused.items():
        # The heads, of which nothing smaller than blocks is left.
        for group in block_groups(spec, name, dim):
            limits[group] = why
    return replace(spec, pinned=tuple(pins), limits=limits)


def _with_places(
    axis_map: AxisMap, group: Group, places: Iterable[Place]
) -> AxisMap:
    """The map of one tensor with all its pairs."""
    places = list(places)
    dim = places[0].dim
    if len(axis_map.sites[dim]) != 1:
        raise Limit(
            f"a dimension of {axis_map.tensor!r} holds other units, too"
        )
    site = axis_map.site_dims.index(dim)
    parent = None if group.parent is None else group.parent.id
    covered = torch.zeros(axis_map.shape[dim], dtype=torch.bool)
    for place in places:
        covered[place.index] = True
    components: list[Component] = []
    for component in axis_map.components:
        over = component.sites == (site,) and bool(
            covered[component.index].any()
        )
        if not over:
            components.append(component)
        elif component.group == parent:
            components += _without(component, covered)
        else:
            return _with_queries(axis_map, group, places, site)
    for place in places:
        components.append(
            Component(group.id, (site,), place.index, place.power)
        )
    return replace(axis_map, components=tuple(components))


def _without(component: Component, covered: Tensor) -> list[Component]:
    """The copies of the heads' rows that hold no pairs."""
    free = ~covered[component.index].any(0)
    if not bool(free.any()):
        return []
    return [replace(component, index=component.index[:, free])]


def _with_queries(
    axis_map: AxisMap, group: Group, places: list[Place], site: int
) -> AxisMap:
    """The rows are key heads × queries × units in order, and queries are a group inside the key heads."""
    if len(places) != 1:
        raise Limit(
            f"the queries of a key head stand beside keys in {axis_map.tensor!r}"
        )
    (place,) = places
    heads, each = group.instances, place.index.shape[1]
    layout = _layout(axis_map, group, place)
    factors = (heads, each, group.size)
    own = tuple(factor for factor in factors if factor > 1)
    # Sites of the rows: heads first, units last; the queries of a head stand between them.
    last = site + len(own) - 1
    over = (site, last) if heads > 1 else (last,)
    index = torch.arange(heads)[:, None] * group.size + layout
    pairs = Component(group.id, over, index.reshape(-1, 1), place.power)
    components = [pairs]
    parent = None if group.parent is None else group.parent.id
    for component in axis_map.components:
        if component.sites != (site,):
            components.append(_behind(component, site, len(own) - 1))
        elif component.group != parent:
            components.append(_queries(component, site, heads, each))
    sites = list(axis_map.sites)
    sites[place.dim] = own
    return AxisMap(axis_map.tensor, tuple(sites), tuple(components))


def _layout(axis_map: AxisMap, group: Group, place: Place) -> Tensor:
    """Which rows of a query the units are, the same for all queries.

    Raises:
        Limit: The rows are not all queries of all heads in their order.
    """
    heads, size, each = group.instances, group.size, place.index.shape[1]
    # Of every head and query the units, relative to where its rows begin.
    grid = place.index.reshape(heads, size, each).transpose(1, 2)
    begins = torch.arange(heads * each).reshape(heads, each, 1) * size
    layout = grid - begins
    whole = axis_map.shape[place.dim] == heads * each * size
    regular = bool((layout == layout[0, 0]).all())
    inside = bool(((layout >= 0) & (layout < size)).all())
    if not (whole and regular and inside):
        raise Limit(
            f"the rows of {axis_map.tensor!r} are not queries in the order of the key heads"
        )
    return layout[0, 0]


def _behind(component: Component, site: int, more: int) -> Component:
    """A component on other sites: those behind the one that was split have larger numbers now."""
    moved = tuple(s + more if s > site else s for s in component.sites)
    return replace(component, sites=moved)


def _queries(
    component: Component, site: int, heads: int, each: int
) -> Component:
    """The order of the queries of each key head stays a group of its own."""
    if component.index.shape[0] != heads * each:
        raise Limit("other units stand between the rotary pairs")
    index = torch.arange(heads * each)[:, None]
    sites = (site, site + 1) if heads > 1 else (site,)
    return replace(component, sites=sites, index=index)
