"""Changing a spec by hand: pin, tie or free groups.

Specs are values, so every function returns a new one.  Pinning and tying take symmetries away and are always safe.
Freeing adds one that the inference did not find: it is a claim, to be proved with
:func:`~lightning_rebasin.check_equivalence` before it is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from lightning_rebasin.errors import SpecError
from lightning_rebasin.symmetry.activations import ActivationSite
from lightning_rebasin.symmetry.report import moved_positions
from lightning_rebasin.symmetry.spec import AxisMap, Component, Group, PermutationSpec, Pin

BY_USER = "pinned by the user"


def pin_group(spec: PermutationSpec, group: str, reason: str = BY_USER) -> PermutationSpec:
    """Forbid the permutations of one group.

    The groups nested inside it stay free: each splits into one group per member of the pinned one
    (``"value"`` becomes ``"value[0]"``, ``"value[1]"``, ...).

    Args:
        spec: The spec to change.
        group: Id of the group to pin.
        reason: What the spec will say about the axes.

    Returns:
        A new spec with fewer symmetries.

    Raises:
        SpecError: There is no such group.

    Example:
        >>> spec = PermutationSpec.from_table({"w": ("a", "b")}, {"w": (3, 2)})
        >>> list(pin_group(spec, "a").groups), pin_group(spec, "a").pinned[0].reason
        (['b'], 'pinned by the user')
    """
    _require(spec, group)
    gone = spec.groups[group]
    groups: dict[str, Group] = {}
    pieces: dict[str, tuple[str, ...]] = {group: ()}
    for g in spec.groups.values():
        if g.id == group:
            continue
        if not _is_inside(g, gone):
            groups[g.id] = g
            continue
        pieces[g.id] = tuple(f"{g.id}[{i}]" for i in range(gone.size))
        for i, name in enumerate(pieces[g.id]):
            assert g.parent is not None
            parent = gone.parent if g.parent.id == group else groups[pieces[g.parent.id][i]]
            groups[name] = Group(name, g.size, parent, g.kind)
    maps = {
        name: replace(m, components=tuple(part for c in m.components for part in _split(spec, c, gone, pieces)))
        for name, m in spec.maps.items()
    }
    watched: dict[str, tuple[ActivationSite, ...]] = {}
    for sites in spec.activations.values():
        for site in sites:
            for part in _split(spec, site.component, gone, pieces):
                watched[part.group] = (*watched.get(part.group, ()), replace(site, component=part))
    return _rebuilt(replace(spec, activations=watched), groups, maps, set(spec.tensors_of(group)), reason)


def pin_tensor(spec: PermutationSpec, tensor: str, reason: str = BY_USER) -> PermutationSpec:
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
        acting = {c.group for c in spec.maps[name].components}
        # Innermost first: a group is pinned whole before its parent would split it.
        deepest = max(acting, key=lambda g: len(spec.groups[g].shape))
        ancestor = spec.groups[deepest].parent
        spec = pin_group(spec, deepest, reason)
        while ancestor is not None:
            spec, ancestor = pin_group(spec, ancestor.id, reason), ancestor.parent
    return spec


def tie_groups(spec: PermutationSpec, first: str, second: str) -> PermutationSpec:
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
    _require(spec, first)
    _require(spec, second)
    a, b = spec.groups[first], spec.groups[second]
    if first == second or a.size != b.size or a.parent != b.parent:
        raise SpecError(
            f"groups {first!r} ({a.size} units in {a.parent and a.parent.id!r}) and {second!r} ({b.size} units in "
            f"{b.parent and b.parent.id!r}) cannot be tied: they must be two groups of one size inside the same parent"
        )
    groups: dict[str, Group] = {}
    # The children of both may come before the later of the two, so the one that stays takes the earlier place.
    earlier = next(name for name in spec.groups if name in (first, second))
    ordered = [
        a if g.id == earlier else g for g in spec.groups.values() if g.id == earlier or g.id not in (first, second)
    ]
    for g in ordered:
        parent = None if g.parent is None else groups.get(first if g.parent.id == second else g.parent.id)
        groups[g.id] = Group(g.id, g.size, parent, g.kind)
    maps = {
        name: replace(m, components=tuple(replace(c, group=first) if c.group == second else c for c in m.components))
        for name, m in spec.maps.items()
    }
    moved = (replace(x, component=replace(x.component, group=first)) for x in spec.activations.get(second, ()))
    watched = {name: sites for name, sites in spec.activations.items() if name != second}
    watched[first] = (*watched.get(first, ()), *moved)
    return _rebuilt(replace(spec, activations={g: x for g, x in watched.items() if x}), groups, maps, set(), "")


def free_group(spec: PermutationSpec, group: str, axes: Mapping[str, int | tuple[int, ...]]) -> PermutationSpec:
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
    maps, size = dict(spec.maps), 0
    freed: set[tuple[str, int]] = set()
    for name, value in axes.items():
        if name not in spec.tensors or name in spec.aliases:
            raise SpecError(f"the spec has no tensor {name!r} of its own")
        shape = spec.tensors[name].shape
        axis_map = maps.get(name, AxisMap(name, tuple((n,) for n in shape), ()))
        for dim in (value,) if isinstance(value, int) else value:
            if not 0 <= dim < len(shape):
                raise SpecError(f"tensor {name!r} has no dimension {dim}")
            if shape[dim] != (size := size or shape[dim]):
                raise SpecError(f"dimension {dim} of {name!r} has size {shape[dim]}, group {group!r} has {size}")
            if len(axis_map.sites[dim]) > 1 or bool(moved_positions(axis_map, dim).any()):
                raise SpecError(f"dimension {dim} of {name!r} is moved by another group already; pin that one first")
            site = sum(len(factors) for factors in axis_map.sites[:dim])
            new = Component(group, (site,), torch.arange(size)[:, None])
            axis_map = replace(axis_map, components=(*axis_map.components, new))
            freed.add((name, dim))
        maps[name] = axis_map
    if not freed:
        raise SpecError(f"group {group!r} needs at least one axis")
    kept = tuple(pin for pin in spec.pinned if (pin.tensor, pin.dim) not in freed)
    return replace(spec, groups={**spec.groups, group: Group(group, size)}, maps=maps, pinned=kept)


def _require(spec: PermutationSpec, group: str) -> None:
    if group not in spec.groups:
        raise SpecError(f"the spec has no group {group!r}; it has {', '.join(map(repr, list(spec.groups)[:8]))}")


def _is_inside(group: Group, outer: Group) -> bool:
    return group.parent is not None and (group.parent.id == outer.id or _is_inside(group.parent, outer))


def _split(spec: PermutationSpec, c: Component, gone: Group, pieces: Mapping[str, tuple[str, ...]]) -> list[Component]:
    """The component itself, one component per member of the pinned ancestor, or what is left of the pinned group."""
    if c.group not in pieces:
        return [c]
    if c.group == gone.id:
        # Its positions still move with the group around it.
        return [] if gone.parent is None else [replace(c, group=gone.parent.id, index=_regrouped(c, gone.parent))]
    level = len(gone.shape) - 1
    grid = c.index.reshape(*spec.groups[c.group].shape, -1)
    return [
        Component(name, c.sites, grid.select(level, i).reshape(-1, c.index.shape[1]))
        for i, name in enumerate(pieces[c.group])
    ]


def _regrouped(c: Component, parent: Group) -> Tensor:
    return c.index.reshape(parent.members, -1)


def _rebuilt(
    spec: PermutationSpec, groups: dict[str, Group], maps: dict[str, AxisMap], touched: set[str], reason: str
) -> PermutationSpec:
    pins = {(pin.tensor, pin.dim): pin for pin in spec.pinned}
    for name in touched:
        for dim, size in enumerate(maps[name].shape):
            before = int(moved_positions(spec.maps[name], dim).sum())
            after = int(moved_positions(maps[name], dim).sum())
            if after < before:
                pins[name, dim] = Pin(name, dim, size - after, size, reason)
    kept = {name: m for name, m in maps.items() if m.components}
    return replace(spec, groups=groups, maps=kept, pinned=tuple(pins.values()))
