"""Taking a group's symmetries away.  Specs are values, so the result is a new one of the same class."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TypeVar

from lightning_rebasin.errors import SpecError
from lightning_rebasin.symmetry.spec.fields import (
    SpecFields,
    tensors_of,
)
from lightning_rebasin.symmetry.spec.moved import count_moved
from lightning_rebasin.symmetry.spec.values import (
    ActivationAddress,
    AxisMap,
    Component,
    Group,
    Pin,
)

S = TypeVar("S", bound=SpecFields)

BY_USER = "pinned by the user"
#: For each group, where its units can be observed.
Watched = dict[str, tuple[ActivationAddress, ...]]
#: For each group inside a pinned one, the names of the groups that it splits into.
Pieces = Mapping[str, tuple[str, ...]]


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
    watched: Watched = {}
    for addresses in spec.activations.values():
        for address in addresses:
            for part in _split(spec, address.component, gone, pieces):
                watch(watched, address, part)
    touched = set(tensors_of(spec, group))
    changed = replace(spec, activations=watched)
    pinned = rebuilt(changed, groups, maps, touched, reason)
    untied = spec.untied
    if untied is None or group not in untied.groups:
        return pinned
    return replace(pinned, untied=pin_group(untied, group, reason))


def pin_other_kinds(spec: S, kinds: Collection[str]) -> S:
    """The symmetries of some kinds only.

    Args:
        spec: The spec to change.
        kinds: Groups of other kinds are pinned; what they moved inside a unit moves with the unit.

    Returns:
        The spec itself if there are no others.

    Example:
        >>> from lightning_rebasin import PermutationSpec
        >>> spec = PermutationSpec.from_table({"w": ("a", None)}, {"w": (3, 2)})
        >>> list(pin_other_kinds(spec, {"sign"}).groups)
        []
    """
    # Children first, so that what they moved goes to parents that are still there.
    for group in reversed(tuple(spec.groups.values())):
        if group.kind not in kinds and group.id in spec.groups:
            reason = f"symmetries of the kind {group.kind!r} are left out"
            spec = pin_group(spec, group.id, reason)
    if spec.untied is not None:
        spec = replace(spec, untied=pin_other_kinds(spec.untied, kinds))
    return spec


def watch(
    watched: Watched, address: ActivationAddress, component: Component
) -> None:
    """Add an address, at which the units of ``component`` are now seen."""
    moved = replace(address, component=component)
    before = watched.get(component.group, ())
    watched[component.group] = (*before, moved)


def _without_group(
    spec: SpecFields, gone: Group
) -> tuple[dict[str, Group], Pieces]:
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
        names = [f"{group.id}[{i}]" for i in range(gone.size)]
        pieces[group.id] = tuple(names)
        for i, name in enumerate(names):
            # A direct child moves up one level; deeper ones stay inside the piece of their own parent.
            parent = gone.parent
            if group.parent.id != gone.id:
                outer = pieces[group.parent.id][i]
                parent = groups[outer]
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
    pieces: Pieces,
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
    # Rows of the index count through the shape of the group; the pinned group is one axis of it.
    level = len(gone.shape) - 1
    copies = c.index.shape[1]
    group = spec.groups[c.group]
    grid = c.index.reshape(*group.shape[:-1], c.units(group), copies)
    parts = []
    for i, name in enumerate(pieces[c.group]):
        rows = grid.select(level, i)
        index = rows.reshape(-1, copies)
        parts.append(replace(c, group=name, index=index))
    return parts


def rebuilt(
    spec: S,
    groups: dict[str, Group],
    maps: dict[str, AxisMap],
    touched: set[str],
    reason: str,
) -> S:
    """The spec with other groups and maps, and pins that say why the tensors in ``touched`` move less than before.

    What untying would allow was found for the old groups and is left out.
    """
    pins = {(pin.tensor, pin.dim): pin for pin in spec.pinned}
    for name in touched:
        old, new = spec.maps[name], maps[name]
        for dim, size in enumerate(new.shape):
            after = count_moved(new, dim)
            # What was pinned before keeps its own reason.
            if after < count_moved(old, dim):
                stay = size - after
                pins[name, dim] = Pin(name, dim, stay, size, reason)
    kept = {name: m for name, m in maps.items() if m.components}
    limits = {name: why for name, why in spec.limits.items() if name in groups}
    return replace(
        spec,
        groups=groups,
        maps=kept,
        pinned=tuple(pins.values()),
        limits=limits,
        untied=None,
    )
