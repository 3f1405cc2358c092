"""Where heads stand: groups whose members are blocks of units, and to which member each position belongs."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lightning_rebasin.symmetry.continuous.projections import Rows
from lightning_rebasin.symmetry.spec.spec import PermutationSpec
from lightning_rebasin.symmetry.spec.values import AxisMap, Component


def is_pinned(spec: PermutationSpec, rows: Rows) -> bool:
    """Whether nothing moves along a dimension of a tensor, or some of its units move in blocks only."""
    axis_map = spec.maps.get(rows.tensor)
    if axis_map is None:
        return True
    moved = [c for c in axis_map.components if _stands(axis_map, c, rows.dim)]
    return not moved or bool(block_groups(spec, rows.tensor, rows.dim))


def _stands(axis_map: AxisMap, component: Component, dim: int) -> bool:
    return any(axis_map.site_dims[site] == dim for site in component.sites)


def block_groups(spec: PermutationSpec, tensor: str, dim: int) -> list[str]:
    """Groups of which each member, such as a head, is a block of neighbouring positions along a dimension."""
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


def are_free(spec: PermutationSpec, rows: Rows, keys: Tensor) -> bool:
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


def parent_of(
    spec: PermutationSpec, rows: Rows, keys: Tensor
) -> tuple[str | None, Tensor]:
    """The group of which every key head is a member, and the key heads in its order; without it all are one set."""
    for group, member_of in _members(spec, rows):
        members = member_of[rows.places[keys]]
        first = members[:, 0]
        same = bool((members == first[:, None]).all())
        if same and len(set(first.tolist())) == spec.groups[group].members:
            return group, first.argsort()
    return None, torch.arange(len(keys))
