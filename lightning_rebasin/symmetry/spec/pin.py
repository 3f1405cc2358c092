"""Taking a group's symmetries away.  Specs are values, so the result is a new one of the same class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

from lightning_rebasin.errors import SpecError
from lightning_rebasin.symmetry.spec.moved import moved_positions
from lightning_rebasin.symmetry.spec.values import (
    ActivationAddress,
    AxisMap,
    Component,
    Group,
    Pin,
    SpecFields,
    tensors_of,
)

S = TypeVar("S", bound=SpecFields)

BY_USER = "pinned by the user"


def pin_group(spec: S, group: str, reason: str = BY_USER) -> S:
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
        >>> from lightning_rebasin import PermutationSpec
        >>> spec = PermutationSpec.from_table({"w": ("a", "b")}, {"w": (3, 2)})
        >>> list(pin_group(spec, "a").groups), pin_group(spec, "a").pinned[0].reason
        (['b'], 'pinned by the user')
    """
    require_group(spec, group)
    gone = spec.groups[group]
    groups, pieces = _without_group(spec, gone)
    maps = {}
    for name, axis_map in spec.maps.items():
        kept: list[Component] = []
        for component in axis_map.components:
            kept += _split(spec, component, gone, pieces)
        maps[name] = replace(axis_map, components=tuple(kept))
    watched: dict[str, tuple[ActivationAddress, ...]] = {}
    for addresses in spec.activations.values():
        for address in addresses:
            for part in _split(spec, address.component, gone, pieces):
                moved = replace(address, component=part)
                watched[part.group] = (*watched.get(part.group, ()), moved)
    touched = set(tensors_of(spec, group))
    return rebuilt(
        replace(spec, activations=watched), groups, maps, touched, reason
    )


def _without_group(
    spec: SpecFields, gone: Group
) -> tuple[dict[str, Group], dict[str, tuple[str, ...]]]:
    """The groups that are left, and for each one inside the pinned group the names of its pieces.

    Pinning ``heads`` (2) splits ``value`` (3 inside each head) into ``value[0]`` and ``value[1]``.
    """
    groups: dict[str, Group] = {}
    pieces: dict[str, tuple[str, ...]] = {gone.id: ()}
    for group in spec.groups.values():
        if group.id == gone.id:
            continue
        if not _is_inside(group, gone):
            groups[group.id] = group
            continue
        assert group.parent is not None
        pieces[group.id] = tuple(f"{group.id}[{i}]" for i in range(gone.size))
        for i, name in enumerate(pieces[group.id]):
            parent = gone.parent
            if group.parent.id != gone.id:
                parent = groups[pieces[group.parent.id][i]]
            groups[name] = Group(name, group.size, parent, group.kind)
    return groups, pieces


def require_group(spec: SpecFields, group: str) -> None:
    """Raise unless the spec has the group."""
    if group not in spec.groups:
        some = ", ".join(map(repr, list(spec.groups)[:8]))
        raise SpecError(f"the spec has no group {group!r}; it has {some}")


def _is_inside(group: Group, outer: Group) -> bool:
    if group.parent is None:
        return False
    return group.parent.id == outer.id or _is_inside(group.parent, outer)


def _split(
    spec: SpecFields,
    c: Component,
    gone: Group,
    pieces: Mapping[str, tuple[str, ...]],
) -> list[Component]:
    """The component itself, one component per member of the pinned ancestor, or what is left of the pinned group."""
    if c.group not in pieces:
        return [c]
    if c.group == gone.id:
        if gone.parent is None:
            return []
        # Its positions still move with the group around it.
        index = c.index.reshape(gone.parent.members, -1)
        return [replace(c, group=gone.parent.id, index=index)]
    level = len(gone.shape) - 1
    grid = c.index.reshape(*spec.groups[c.group].shape, -1)
    parts = []
    for i, name in enumerate(pieces[c.group]):
        index = grid.select(level, i).reshape(-1, c.index.shape[1])
        parts.append(replace(c, group=name, index=index))
    return parts


def rebuilt(
    spec: S,
    groups: dict[str, Group],
    maps: dict[str, AxisMap],
    touched: set[str],
    reason: str,
) -> S:
    """The spec with other groups and maps, and pins that say why the tensors in ``touched`` move less than before."""
    pins = {(pin.tensor, pin.dim): pin for pin in spec.pinned}
    for name in touched:
        for dim, size in enumerate(maps[name].shape):
            before = int(moved_positions(spec.maps[name], dim).sum())
            after = int(moved_positions(maps[name], dim).sum())
            if after < before:
                pins[name, dim] = Pin(name, dim, size - after, size, reason)
    kept = {name: m for name, m in maps.items() if m.components}
    return replace(spec, groups=groups, maps=kept, pinned=tuple(pins.values()))
