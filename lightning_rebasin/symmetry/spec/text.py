"""A spec in words: the table of its groups, and the story of one tensor."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence

from lightning_rebasin.errors import SpecError
from lightning_rebasin.symmetry.spec.moved import moved_positions
from lightning_rebasin.symmetry.spec.values import (
    AxisMap,
    Component,
    SpecFields,
    log10_symmetries,
    tensors_of,
)

#: How many axes of a group the table names before it counts the rest.
SHOWN = 3


def spec_table(spec: SpecFields) -> str:
    """One line per group (what it is, how many symmetries, where it acts), then what is pinned and the notes.

    Args:
        spec: The spec to print.

    Returns:
        Lines of text.

    Example:
        >>>         >>> table = {"a.weight": ("h", None), "b.weight": (None, "h")}
        >>> print(spec_table(PermutationSpec.from_table(table, {"a.weight": (3, 2), "b.weight": (1, 3)})))
        group  size  inside  log10  acts on (tensor[dimension])
        h         3  -         0.8  a.weight[0], b.weight[1]
        total                  0.8  1 group; 2 of 2 tensors move
    """
    header = ("group", "size", "inside", "log10", "acts on (tensor[dimension])")
    rows = [header]
    for group in spec.groups.values():
        size = f"{group.instances}×{group.size}" if group.parent else str(group.size)
        axes = [
            f"{name}[{dim}]"
            for name in tensors_of(spec, group.id)
            for dim in spec.maps[name].dims_of(group.id)
        ]
        more = f" (+{len(axes) - SHOWN} more)" if len(axes) > SHOWN else ""
        inside = group.parent.id if group.parent else "-"
        rows.append(
            (
                group.id,
                size,
                inside,
                f"{group.log10_symmetries:.1f}",
                ", ".join(axes[:SHOWN]) + more,
            )
        )
    rows.append(("total", "", "", f"{log10_symmetries(spec):.1f}", _summary(spec)))
    lines = _aligned(rows, right=(1, 3))
    pinned: dict[str, int] = {}
    for pin in spec.pinned:
        pinned[pin.reason] = pinned.get(pin.reason, 0) + 1
    lines += [
        f"pinned: {_count(n, 'axis', 'axes')}: {reason}"
        for reason, n in sorted(pinned.items(), key=_by_count)
    ]
    lines += [f"note: {note}" for note in spec.notes]
    return "\n".join(lines)


def explain_tensor(spec: SpecFields, tensor: str) -> str:
    """What moves in one tensor, with which group, and what stays and why.

    Args:
        spec: The spec.
        tensor: Name in the state dict.

    Returns:
        One line for the tensor and one or more per dimension.

    Raises:
        SpecError: The spec has no such tensor; the message offers the nearest names.

    Example:
        >>>         >>> spec = PermutationSpec.from_table({"w": ("h", None)}, {"w": (3, 2)})
        >>> print(explain_tensor(spec, "w"))
        w: parameter (3, 2)
          dimension 0 (3): moves with group 'h' (3 units)
          dimension 1 (2): pinned
    """
    info = spec.tensors.get(tensor)
    if info is None:
        raise SpecError(
            f"the spec has no tensor {tensor!r}{_suggestion(tensor, list(spec.tensors))}"
        )
    origin = spec.aliases.get(tensor, tensor)
    tied = [
        name
        for name, target in spec.aliases.items()
        if target == origin and name != tensor
    ]
    names = [name for name in (origin, *tied) if name != tensor]
    lines = [
        f"{tensor}: {info.kind} {info.shape}"
        + (f", tied to {', '.join(names)}" if names else "")
    ]
    axis_map = spec.maps.get(origin)
    for dim, size in enumerate(info.shape):
        moving = (
            []
            if axis_map is None
            else [c for c in axis_map.components if dim in axis_map.dims_of(c.group)]
        )
        parts = [
            _movement(spec, axis_map, c, dim)
            for c in moving
            if axis_map is not None and dim in _dims(axis_map, c)
        ]
        stays = (
            size
            if axis_map is None
            else size - int(moved_positions(axis_map, dim).sum())
        )
        pins = [p for p in spec.pinned if p.tensor == origin and p.dim == dim]
        if stays or not parts:
            share = "pinned" if stays == size else f"{stays} of {size} positions pinned"
            reasons = {p.reason + (f" (at {p.where})" if p.where else "") for p in pins}
            parts.append(share + (f": {'; '.join(sorted(reasons))}" if reasons else ""))
        lines += [f"  dimension {dim} ({size}): {part}" for part in parts]
    return "\n".join(lines)


def _dims(axis_map: AxisMap, component: Component) -> set[int]:
    return {axis_map.site_dims[site] for site in component.sites}


def _movement(
    spec: SpecFields, axis_map: AxisMap | None, component: Component, dim: int
) -> str:
    group = spec.groups[component.group]
    units = (
        f"{group.instances}×{group.size} units inside {group.parent.id!r}"
        if group.parent
        else f"{group.size} units"
    )
    text = f"moves with group {group.id!r} ({units})"
    if axis_map is None:
        return text
    extra = []
    if (others := sorted(_dims(axis_map, component) - {dim})) != []:
        extra.append(f"together with dimension {', '.join(map(str, others))}")
    own = [site for site in component.sites if axis_map.site_dims[site] == dim]
    if len(axis_map.sites[dim]) > len(own):
        kept = [
            n
            for site, n in enumerate(axis_map.site_shape)
            if axis_map.site_dims[site] == dim and site not in own
        ]
        extra.append(f"in blocks of {math.prod(kept)}")
    if component.index.shape[1] > 1 and not others:
        extra.append(f"{component.index.shape[1]} positions per unit")
    return f"{text}{', ' if extra else ''}{', '.join(extra)}"


def _summary(spec: SpecFields) -> str:
    moving = len(spec.maps) + sum(
        target in spec.maps for target in spec.aliases.values()
    )
    return f"{_count(len(spec.groups), 'group', 'groups')}; {moving} of {len(spec.tensors)} tensors move"


def _suggestion(name: str, names: list[str]) -> str:
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    near += [
        candidate
        for candidate in names
        if name and name in candidate and candidate not in near
    ][: 3 - len(near)]
    return (
        f"; did you mean {', '.join(map(repr, near))}?"
        if near
        else f"; it has {len(names)} others"
    )


def _aligned(rows: Sequence[Sequence[str]], right: tuple[int, ...]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    cells = (
        [
            t.rjust(w) if i in right else t.ljust(w)
            for i, (t, w) in enumerate(zip(r, widths, strict=True))
        ]
        for r in rows
    )
    return ["  ".join(row).rstrip() for row in cells]


def _by_count(item: tuple[str, int]) -> tuple[int, str]:
    return -item[1], item[0]


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"
