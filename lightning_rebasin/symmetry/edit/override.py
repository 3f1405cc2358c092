"""Changing a spec by hand: pin, tie or free groups.

Specs are values, so every function returns a new one.  Pinning and tying take symmetries away and are always safe.
Freeing adds one that the inference did not find: it is a claim, to be proved with
:func:`~lightning_rebasin.check_equivalence` before it is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from lightning_rebasin.errors import SpecError
from lightning_rebasin.symmetry.spec.moved import count_moved
from lightning_rebasin.symmetry.spec.pin import (
    BY_USER,
    Watched,
    pin_group,
    rebuilt,
    require_group,
    watch,
)
from lightning_rebasin.symmetry.spec.spec import PermutationSpec
from lightning_rebasin.symmetry.spec.values import (
    AxisMap,
    Component,
    Group,
)

#: One dimension of a tensor, or several.
Dims = int | tuple[int, ...]


def pin_tensor(
    spec: PermutationSpec, tensor: str, reason: str = BY_USER
) -> PermutationSpec:
    """Keep one tensor as it is, by pinning every group that moves any of its axes.

    Args:
        spec: The spec to change.
        tensor: Name in the state dict.
        reason: What the spec will say about the axes.

    Returns:
        A new spec in which nothing acts on the tensor.

    Raises:
        SpecError: There is no such tensor.
    """
    if tensor not in spec.tensors:
        raise SpecError(f"the spec has no tensor {tensor!r}")
    name = spec.aliases.get(tensor, tensor)
    while name in spec.maps:
        acting = spec.maps[name].groups
        # Innermost first: a group is pinned whole before its parent would split it.
        deepest = max(acting, key=lambda g: len(spec.groups[g].shape))
        ancestor = spec.groups[deepest].parent
        spec = pin_group(spec, deepest, reason)
        while ancestor is not None:
            spec = pin_group(spec, ancestor.id, reason)
            ancestor = ancestor.parent
    return spec


def tie_groups(
    spec: PermutationSpec, first: str, second: str
) -> PermutationSpec:
    """Make two groups move alike: one permutation for both.

    Args:
        spec: The spec to change.
        first: Id of the group that stays.
        second: Id of the group that becomes the first one; of the same size and inside the same parent.

    Returns:
        A new spec with one group less.

    Raises:
        SpecError: A group is unknown, or sizes or parents differ.
    """
    require_group(spec, first)
    require_group(spec, second)
    _check_alike(spec.groups[first], spec.groups[second])
    maps = {}
    for name, axis_map in spec.maps.items():
        tied = [_renamed(c, second, first) for c in axis_map.components]
        maps[name] = replace(axis_map, components=tuple(tied))
    watched: Watched = {}
    for addresses in spec.activations.values():
        for address in addresses:
            component = _renamed(address.component, second, first)
            watch(watched, address, component)
    groups = _with_one_group_less(spec, first, second)
    changed = replace(spec, activations=watched)
    # Nothing moves less than before, so nothing new is pinned.
    return rebuilt(changed, groups, maps, set(), "")


def _check_alike(first: Group, second: Group) -> None:
    """Raise unless one permutation can order both groups."""
    same = first.size == second.size and first.parent == second.parent
    if first.id == second.id or not same:
        raise SpecError(
            f"groups {_described(first)} and {_described(second)} cannot be tied: they must be two groups of one "
            "size inside the same parent"
        )


def _described(group: Group) -> str:
    parent = None if group.parent is None else repr(group.parent.id)
    return f"{group.id!r} ({group.size} units in {parent})"


def _renamed(component: Component, old: str, new: str) -> Component:
    if component.group != old:
        return component
    return replace(component, group=new)


def _with_one_group_less(
    spec: PermutationSpec, first: str, second: str
) -> dict[str, Group]:
    """The groups when ``second`` has become ``first``; what lay inside it lies inside ``first``."""
    # The children of both may come before the later of the two, so the one that stays takes the earlier place.
    earlier = next(name for name in spec.groups if name in (first, second))
    later = second if earlier == first else first
    groups: dict[str, Group] = {}
    for name in spec.groups:
        if name == later:
            continue
        group = spec.groups[first if name == earlier else name]
        parent = None
        if group.parent is not None:
            outer = group.parent.id
            parent = groups[first if outer == second else outer]
        groups[group.id] = Group(group.id, group.size, parent, group.kind)
    return groups


def free_group(
    spec: PermutationSpec,
    group: str,
    axes: Mapping[str, Dims],
) -> PermutationSpec:
    """Add a group that the inference did not find: a claim that the gate has to prove.

    Args:
        spec: The spec to change.
        group: Id for the new group.
        axes: For each tensor the dimension or dimensions that the group permutes whole.

    Returns:
        A new spec with one group more; run :func:`~lightning_rebasin.check_equivalence` on it.

    Raises:
        SpecError: The id is taken, a tensor is unknown, the sizes differ, or something acts on an axis already.
    """
    if group in spec.groups:
        raise SpecError(f"the spec has a group {group!r} already")
    maps = dict(spec.maps)
    size = 0
    freed = _axes(axes)
    for name, dim in freed:
        axis_map = _own_map(spec, maps, name)
        # The first axis decides how many units there are.
        size = _check_free(axis_map, dim, group, size)
        maps[name] = _with_axis(axis_map, dim, group)
    if not freed:
        raise SpecError(f"group {group!r} needs at least one axis")
    kept = []
    for pin in spec.pinned:
        if (pin.tensor, pin.dim) not in freed:
            kept.append(pin)
    groups = {**spec.groups, group: Group(group, size)}
    # What untying would allow was found without this group.
    return replace(
        spec, groups=groups, maps=maps, pinned=tuple(kept), untied=None
    )


def _axes(axes: Mapping[str, Dims]) -> list[tuple[str, int]]:
    """One ``(tensor, dimension)`` for each axis that a user names."""
    found = []
    for name, value in axes.items():
        dims = (value,) if isinstance(value, int) else value
        found += [(name, dim) for dim in dims]
    return found


def _own_map(
    spec: PermutationSpec, maps: Mapping[str, AxisMap], name: str
) -> AxisMap:
    """The axis map of a tensor; an empty one if nothing moves it yet."""
    if name not in spec.tensors or name in spec.aliases:
        raise SpecError(f"the spec has no tensor {name!r} of its own")
    if name in maps:
        return maps[name]
    whole = tuple((size,) for size in spec.tensors[name].shape)
    return AxisMap(name, whole, ())


def _with_axis(axis_map: AxisMap, dim: int, group: str) -> AxisMap:
    """The axis map with one dimension moved whole by a new group: row ``m`` is unit ``m``."""
    site = sum(len(factors) for factors in axis_map.sites[:dim])
    index = torch.arange(axis_map.shape[dim])[:, None]
    new = Component(group, (site,), index)
    return replace(axis_map, components=(*axis_map.components, new))


def _check_free(axis_map: AxisMap, dim: int, group: str, size: int) -> int:
    """The size of a dimension that nothing moves yet."""
    name, shape = axis_map.tensor, axis_map.shape
    if not 0 <= dim < len(shape):
        raise SpecError(f"tensor {name!r} has no dimension {dim}")
    here = shape[dim]
    what = f"dimension {dim} of {name!r}"
    if size not in (0, here):
        raise SpecError(f"{what} has size {here}, group {group!r} has {size}")
    # A dimension is split into sites only where a group moves it in blocks.
    split = len(axis_map.sites[dim]) > 1
    if split or count_moved(axis_map, dim):
        raise SpecError(
            f"{what} is moved by another group already; pin that one first"
        )
    return here
