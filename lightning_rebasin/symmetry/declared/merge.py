"""Putting declared groups into an inferred spec.

On the dimensions that a declaration speaks about, its groups take the place of the inferred ones.  The others stay: a
hidden layer that feeds a declaring module keeps its units, which lie on another dimension of the same weight.

An inferred group may also reach beyond the module: the trace sees that the trees of an ensemble are interchangeable,
and that a gate outside, with one number for each tree, moves with them.  Where a declared permutation moves exactly
what the inferred one does, it takes over all its places, the outer ones too.  Otherwise the inferred group is pinned.

Nothing here is proved; :mod:`.prove` does that with the result.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from lightning_rebasin.symmetry.declared.collect import Declared
from lightning_rebasin.symmetry.spec.moved import count_moved
from lightning_rebasin.symmetry.spec.pin import pin_group
from lightning_rebasin.symmetry.spec.spec import PermutationSpec
from lightning_rebasin.symmetry.spec.values import (
    ActivationAddress,
    AxisMap,
    Component,
    Group,
    Pin,
    TensorInfo,
)

REPLACED = "a module that declares its own symmetries has other ones here"
UNDECLARED = "the module that declares its symmetries does not move it"


def with_declared(
    spec: PermutationSpec, declared: Declared
) -> PermutationSpec:
    """The spec in which declared groups stand where the declaration puts them.

    Args:
        spec: What was inferred.
        declared: What one submodule declares, in the names of the network.
    """
    successors: dict[str, str] = {}
    for group in _displaced(spec, declared):
        # A group may have gone with its parent.
        if group not in spec.groups:
            continue
        spec = _without_inner(spec, group)
        successor = _successor(spec, declared, group)
        if successor is None:
            spec = pin_group(spec, group, REPLACED)
        else:
            successors[group] = successor
    maps = _merged_maps(spec, declared, successors)
    kept = {k: g for k, g in spec.groups.items() if k not in successors}
    groups = {**kept, **declared.groups}
    limits = {name: why for name, why in spec.limits.items() if name in groups}
    return replace(
        spec,
        groups=groups,
        limits=limits,
        tensors=_informed(spec, declared),
        maps=maps,
        pinned=_pins(spec, declared, maps),
        activations=_renamed_activations(spec, successors),
    )


def touched_dims(axis_map: AxisMap) -> set[int]:
    """The dimensions about which a declaration says something."""
    dims: set[int] = set()
    for component in axis_map.components:
        dims |= _dims(axis_map, component)
    return dims


def _dims(axis_map: AxisMap, component: Component) -> set[int]:
    return {axis_map.site_dims[site] for site in component.sites}


def _displaced(spec: PermutationSpec, declared: Declared) -> list[str]:
    """Inferred groups that act on declared dimensions."""
    found: list[str] = []
    for name, theirs in declared.maps.items():
        ours = spec.maps.get(name)
        if ours is None:
            continue
        busy = touched_dims(theirs)
        for component in ours.components:
            if busy & _dims(ours, component):
                # What lies inside goes with the outermost group.
                found.append(spec.groups[component.group].root.id)
    return list(dict.fromkeys(found))


def _without_inner(spec: PermutationSpec, outer: str) -> PermutationSpec:
    """The spec without the groups inside another; what they moved moves with it."""
    for group in reversed(tuple(spec.groups.values())):
        if group.id != outer and group.root.id == outer:
            spec = pin_group(spec, group.id, REPLACED)
    return spec


def _successor(
    spec: PermutationSpec, declared: Declared, group: str
) -> str | None:
    """The declared permutation that moves what an inferred group moves in the declaring module."""
    shared = [t for t in spec.tensors_of(group) if t in declared.maps]
    for candidate in declared.groups.values():
        outermost = candidate.parent is None
        if not outermost or candidate.kind != spec.groups[group].kind:
            continue
        if candidate.size != spec.groups[group].size:
            continue
        if all(
            torch.equal(
                unit_of_positions(spec.maps[t], spec.groups, group),
                unit_of_positions(
                    declared.maps[t], declared.groups, candidate.id
                ),
            )
            for t in shared
        ):
            return candidate.id
    return None


def unit_of_positions(
    axis_map: AxisMap, groups: Mapping[str, Group], root: str
) -> Tensor:
    """With which unit of an outermost group each entry of a tensor moves; −1 where with none.

    Args:
        axis_map: Where units lie in the tensor.
        groups: The groups.
        root: Id of the outermost group; what lies inside a unit moves with it.

    Returns:
        LongTensor of the tensor's shape.
    """
    shape = axis_map.site_shape
    result = torch.full(shape, -1)
    for component in axis_map.components:
        if groups[component.group].root.id != root:
            continue
        own = [shape[site] for site in component.sites]
        rows = len(component.index)
        # Rows are counted unit by unit: 6 rows of 3 units are two for each.
        unit = torch.arange(rows) // (rows // groups[root].size)
        flat = torch.full((torch.Size(own).numel(),), -1)
        flat[component.index] = unit[:, None].expand(component.index.shape)
        view = [1] * len(shape)
        for site, size in zip(component.sites, own, strict=True):
            view[site] = size
        here = flat.reshape(view)
        result = torch.where(here >= 0, here, result)
    return result.reshape(axis_map.shape)


def _merged_maps(
    spec: PermutationSpec, declared: Declared, successors: Mapping[str, str]
) -> dict[str, AxisMap]:
    maps: dict[str, AxisMap] = {}
    for name, axis_map in spec.maps.items():
        renamed = [
            replace(c, group=successors.get(c.group, c.group))
            for c in axis_map.components
        ]
        maps[name] = replace(axis_map, components=tuple(renamed))
    for name, theirs in declared.maps.items():
        maps[name] = overlay(maps.get(name), theirs)
    return maps


def overlay(ours: AxisMap | None, theirs: AxisMap) -> AxisMap:
    """One map of a tensor: a declaration's on the dimensions that it touches, the inferred one on the others.

    Args:
        ours: The inferred map, if there is one.
        theirs: The declared map.
    """
    if ours is None:
        return theirs
    busy = touched_dims(theirs)
    sites = []
    for dim, (own, other) in enumerate(
        zip(ours.sites, theirs.sites, strict=True)
    ):
        sites.append(other if dim in busy else own)
    merged = replace(ours, sites=tuple(sites), components=())
    kept = [c for c in ours.components if not busy & _dims(ours, c)]
    components = [
        *_renumbered(kept, ours, merged),
        *_renumbered(theirs.components, theirs, merged),
    ]
    return replace(merged, components=tuple(components))


def _renumbered(
    components: Iterable[Component], old: AxisMap, new: AxisMap
) -> list[Component]:
    """Components over the sites of another map that splits their dimensions in the same way."""
    found = []
    for component in components:
        sites = []
        for site in component.sites:
            dim = old.site_dims[site]
            # How far into its dimension the site is, counted from where the dimension begins.
            offset = site - old.site_dims.index(dim)
            sites.append(new.site_dims.index(dim) + offset)
        found.append(replace(component, sites=tuple(sites)))
    return found


def _informed(
    spec: PermutationSpec, declared: Declared
) -> dict[str, TensorInfo]:
    """The tensors, with the importance that the declaring module gives to its own."""
    tensors = dict(spec.tensors)
    for name, info in declared.tensors.items():
        if info.importance is not None:
            tensors[name] = replace(tensors[name], importance=info.importance)
    return tensors


def _pins(
    spec: PermutationSpec, declared: Declared, maps: Mapping[str, AxisMap]
) -> tuple[Pin, ...]:
    """What is pinned now: a declaration frees what it moves, and says why it does not move the rest."""
    pins = {(pin.tensor, pin.dim): pin for pin in spec.pinned}
    reasons = {(pin.tensor, pin.dim): pin.reason for pin in declared.pinned}
    for name in declared.maps:
        for dim in touched_dims(declared.maps[name]):
            size = maps[name].shape[dim]
            stay = size - count_moved(maps[name], dim)
            pins.pop((name, dim), None)
            if stay:
                reason = reasons.get((name, dim), UNDECLARED)
                pins[name, dim] = Pin(name, dim, stay, size, reason)
    return tuple(pins.values())


def _renamed_activations(
    spec: PermutationSpec, successors: Mapping[str, str]
) -> dict[str, tuple[ActivationAddress, ...]]:
    """Where units can be observed; those of a replaced group are units of its successor now."""
    found: dict[str, tuple[ActivationAddress, ...]] = {}
    for group, addresses in spec.activations.items():
        name = successors.get(group, group)
        moved = []
        for address in addresses:
            component = replace(address.component, group=name)
            moved.append(replace(address, component=component))
        found[name] = (*found.get(name, ()), *moved)
    return found
