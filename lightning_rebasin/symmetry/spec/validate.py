"""Refusing specs that contradict themselves: unknown groups, indices that do not fit, units that overlap."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_rebasin.errors import SpecError
from lightning_rebasin.symmetry.spec.fields import (
    SpecFields,
)
from lightning_rebasin.symmetry.spec.gauge import check_gauge
from lightning_rebasin.symmetry.spec.untied import check_untied
from lightning_rebasin.symmetry.spec.values import (
    AxisMap,
    Component,
    Group,
    TensorInfo,
)


def validate_spec(spec: SpecFields) -> None:
    """Raise unless groups, maps and aliases fit each other and the tensors.

    Args:
        spec: The spec to check.

    Raises:
        SpecError: The message names the group or tensor.
    """
    _check_groups(spec)
    for name, info in spec.tensors.items():
        if info.kind not in ("parameter", "buffer"):
            raise SpecError(
                f"tensor {name!r} has the unknown kind {info.kind!r}"
            )
        _check_importance(name, info)
    for name, axis_map in spec.maps.items():
        shape = spec.tensors[name].shape if name in spec.tensors else None
        if shape != axis_map.shape:
            raise SpecError(
                f"the axis map of {name!r} has shape {axis_map.shape}, the tensor {shape}"
            )
        for component in axis_map.components:
            _check_component(spec, axis_map, component)
        _check_disjoint(axis_map)
    for name, origin in spec.aliases.items():
        _check_alias(spec, name, origin)
    check_gauge(spec)
    check_untied(spec)


def _check_importance(name: str, info: TensorInfo) -> None:
    """One positive number for each position along a dimension that the tensor has."""
    if info.importance is None:
        return
    dim, weights = info.importance.dim, info.importance.weights
    fits = 0 <= dim < len(info.shape) and info.shape[dim] == len(weights)
    if not fits or not all(0.0 < weight < math.inf for weight in weights):
        raise SpecError(
            f"tensor {name!r} of shape {info.shape}: the importance along dimension {dim} must be one positive "
            "number for each position"
        )


def _check_alias(spec: SpecFields, name: str, origin: str) -> None:
    """A tied tensor has one map, under the name of its origin."""
    tensors = spec.tensors
    known = name in tensors and origin in tensors
    alike = known and tensors[name].shape == tensors[origin].shape
    if not alike or origin in spec.aliases or name in spec.maps:
        raise SpecError(
            f"{name!r} cannot be tied to {origin!r}: unknown, of another shape, or mapped itself"
        )


def _check_groups(spec: SpecFields) -> None:
    """Names, sizes and kinds; a parent must come before its children, and be the group that the spec lists."""
    seen: set[str] = set()
    for name, group in spec.groups.items():
        if group.id != name:
            raise SpecError(f"group {group.id!r} is listed as {name!r}")
        if group.size < 1:
            raise SpecError(f"group {name!r} has {group.size} units")
        # Which kinds there are is decided above this room.
        if not isinstance(group.kind, str) or not group.kind.isidentifier():
            raise SpecError(
                f"group {name!r} has the unknown kind {group.kind!r}"
            )
        _check_parent(spec, group, seen)
        seen.add(name)


def _check_parent(spec: SpecFields, group: Group, seen: set[str]) -> None:
    parent = group.parent
    if parent is None:
        return
    listed = parent.id in seen and spec.groups[parent.id] == parent
    if not listed:
        raise SpecError(
            f"group {group.id!r} lies in {parent.id!r}, which must come before it in the spec"
        )


def _check_component(
    spec: SpecFields, axis_map: AxisMap, c: Component
) -> None:
    name = axis_map.tensor
    group = spec.groups.get(c.group)
    if group is None:
        raise SpecError(
            f"tensor {name!r} is mapped to the unknown group {c.group!r}"
        )
    ascending = tuple(sorted(set(c.sites)))
    there = set(range(len(axis_map.site_shape)))
    if not c.sites or c.sites != ascending or not set(c.sites) <= there:
        raise SpecError(
            f"tensor {name!r}: sites {c.sites} are not ascending site numbers"
        )
    members, shape = group.members, tuple(c.index.shape)
    fits = len(shape) == 2 and shape[0] == members
    if len(shape) == 2 and group.kind != "permutation":
        # Other kinds may act on several sets of things, so the number of rows is checked by their actions.
        fits = shape[0] > 0 and shape[0] % group.instances == 0
    if not fits:
        raise SpecError(
            f"tensor {name!r}: index of group {c.group!r} has shape {shape}, expected ({members}, copies)"
        )


def _check_disjoint(axis_map: AxisMap) -> None:
    """Positions must be inside the tensor, and belong to one unit of one group."""
    tensor = axis_map.tensor
    taken: dict[tuple[int, ...], list[Tensor]] = {}
    for component in axis_map.components:
        indices = taken.setdefault(component.sites, [])
        indices.append(component.index.flatten())
    for sites, indices in taken.items():
        positions = torch.cat(indices)
        sizes = [axis_map.site_shape[site] for site in sites]
        total = math.prod(sizes)
        if not len(positions):
            continue
        if int(positions.min()) < 0 or int(positions.max()) >= total:
            raise SpecError(
                f"tensor {tensor!r}: positions over sites {sites} exceed {total}"
            )
        steps = positions.sort().values.diff()
        if bool((steps == 0).any()):
            raise SpecError(
                f"tensor {tensor!r}: a position over sites {sites} belongs to two units"
            )
