"""Taking a group's symmetries away.  Specs are values, so the result is a new one of the same class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

from torch import Tensor

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
        >>> spec = PermutationSpec.from_table({"w": ("a", "b")}, {"w": (3, 2)})
        >>> list(pin_group(spec, "a").groups), pin_group(spec, "a").pinned[0].reason
        (['b'], 'pinned by the user')
    """
    require_group(spec, group)
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
            parent = (
                gone.parent if g.parent.id == group else groups[pieces[g.parent.id][i]]
            )
            groups[name] = Group(name, g.size, parent, g.kind)
    maps = {
        name: replace(
            m,
            components=tuple(
                part for c in m.components for part in _split(spec, c, gone, pieces)
            ),
        )
        for name, m in spec.maps.items()
    }
    watched: dict[str, tuple[ActivationAddress, ...]] = {}
    for sites in spec.activations.values():
        for site in sites:
            for part in _split(spec, site.component, gone, pieces):
                watched[part.group] = (
                    *watched.get(part.group, ()),
                    replace(site, component=part),
                )
    return rebuilt(
        replace(spec, activations=watched),
        groups,
        maps,
        set(tensors_of(spec, group)),
        reason,
    )


def require_group(spec: SpecFields, group: str) -> None:
    """Raise unless the spec has the group."""
    if group not in spec.groups:
        raise SpecError(
            f"the spec has no group {group!r}; it has {', '.join(map(repr, list(spec.groups)[:8]))}"
        )


def _is_inside(group: Group, outer: Group) -> bool:
    return group.parent is not None and (
        group.parent.id == outer.id or _is_inside(group.parent, outer)
    )


def _split(
    spec: S, c: Component, gone: Group, pieces: Mapping[str, tuple[str, ...]]
) -> list[Component]:
    """The component itself, one component per member of the pinned ancestor, or what is left of the pinned group."""
    if c.group not in pieces:
        return [c]
    if c.group == gone.id:
        # Its positions still move with the group around it.
        return (
            []
            if gone.parent is None
            else [replace(c, group=gone.parent.id, index=_regrouped(c, gone.parent))]
        )
    level = len(gone.shape) - 1
    grid = c.index.reshape(*spec.groups[c.group].shape, -1)
    return [
        Component(name, c.sites, grid.select(level, i).reshape(-1, c.index.shape[1]))
        for i, name in enumerate(pieces[c.group])
    ]


def _regrouped(c: Component, parent: Group) -> Tensor:
    return c.index.reshape(parent.members, -1)


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
