"""A spec in words: the table of its groups, and the story of one tensor."""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Sequence

from lightning_rebasin.errors import SpecError
from lightning_rebasin.symmetry.spec.moved import moved_positions
from lightning_rebasin.symmetry.spec.values import (
    AxisMap,
    Component,
    Group,
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
        >>> from lightning_rebasin import PermutationSpec
        >>> table = {"a.weight": ("h", None), "b.weight": (None, "h")}
        >>> print(spec_table(PermutationSpec.from_table(table, {"a.weight": (3, 2), "b.weight": (1, 3)})))
        group  size  inside  log10  acts on (tensor[dimension])
        h         3  -         0.8  a.weight[0], b.weight[1]
        total                  0.8  1 group; 2 of 2 tensors move
    """
    rows = [
        ("group", "size", "inside", "log10", "acts on (tensor[dimension])")
    ]
    rows += [_group_row(spec, group) for group in spec.groups.values()]
    total = f"{log10_symmetries(spec):.1f}"
    rows.append(("total", "", "", total, _summary(spec)))
    lines = _aligned(rows, right=(1, 3))
    pinned = Counter(pin.reason for pin in spec.pinned)
    # The commonest reason first, equal ones by name.
    for reason, count in sorted(
        pinned.items(), key=lambda item: (-item[1], item[0])
    ):
        lines.append(f"pinned: {_count(count, 'axis', 'axes')}: {reason}")
    lines += [f"note: {note}" for note in spec.notes]
    return "\n".join(lines)


def _group_row(
    spec: SpecFields, group: Group
) -> tuple[str, str, str, str, str]:
    size, inside = str(group.size), "-"
    if group.parent is not None:
        size, inside = f"{group.instances}×{group.size}", group.parent.id
    axes = []
    for name in tensors_of(spec, group.id):
        axes += [f"{name}[{dim}]" for dim in spec.maps[name].dims_of(group.id)]
    shown = ", ".join(axes[:SHOWN])
    if len(axes) > SHOWN:
        shown += f" (+{len(axes) - SHOWN} more)"
    return group.id, size, inside, f"{group.log10_symmetries:.1f}", shown


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
        >>> from lightning_rebasin import PermutationSpec
        >>> spec = PermutationSpec.from_table({"w": ("h", None)}, {"w": (3, 2)})
        >>> print(explain_tensor(spec, "w"))
        w: parameter (3, 2)
          dimension 0 (3): moves with group 'h' (3 units)
          dimension 1 (2): pinned
    """
    info = spec.tensors.get(tensor)
    if info is None:
        hint = _suggestion(tensor, list(spec.tensors))
        raise SpecError(f"the spec has no tensor {tensor!r}{hint}")
    origin = spec.aliases.get(tensor, tensor)
    same = [
        origin,
        *(name for name, target in spec.aliases.items() if target == origin),
    ]
    others = [name for name in same if name != tensor]
    tied = f", tied to {', '.join(others)}" if others else ""
    lines = [f"{tensor}: {info.kind} {info.shape}{tied}"]
    for dim, size in enumerate(info.shape):
        for part in _explain_dimension(spec, origin, dim, size):
            lines.append(f"  dimension {dim} ({size}): {part}")
    return "\n".join(lines)


def _explain_dimension(
    spec: SpecFields, tensor: str, dim: int, size: int
) -> list[str]:
    """What moves along one dimension, then what stays."""
    axis_map = spec.maps.get(tensor)
    parts = []
    stays = size
    if axis_map is not None:
        stays -= int(moved_positions(axis_map, dim).sum())
        for component in axis_map.components:
            if dim in _dims(axis_map, component):
                parts.append(_movement(spec, axis_map, component, dim))
    # A dimension of size 0 is said to be pinned: it must say something.
    if stays or not parts:
        share = f"{stays} of {size} positions pinned"
        parts.append(
            ("pinned" if stays == size else share) + _why(spec, tensor, dim)
        )
    return parts


def _why(spec: SpecFields, tensor: str, dim: int) -> str:
    """The reasons why positions of a dimension stay, behind a colon; empty if there is none."""
    reasons = set()
    for pin in spec.pinned:
        if (pin.tensor, pin.dim) == (tensor, dim):
            place = f" (at {pin.where})" if pin.where else ""
            reasons.add(pin.reason + place)
    return f": {'; '.join(sorted(reasons))}" if reasons else ""


def _dims(axis_map: AxisMap, component: Component) -> set[int]:
    return {axis_map.site_dims[site] for site in component.sites}


def _movement(
    spec: SpecFields, axis_map: AxisMap, component: Component, dim: int
) -> str:
    """How the units of one component move along a dimension."""
    group = spec.groups[component.group]
    units = f"{group.size} units"
    if group.parent is not None:
        units = f"{group.instances}×{units} inside {group.parent.id!r}"
    words = [f"moves with group {group.id!r} ({units})"]
    others = sorted(_dims(axis_map, component) - {dim})
    if others:
        words.append(f"together with dimension {', '.join(map(str, others))}")
    unknown = _sizes_beside(axis_map, component, dim)
    if unknown:
        # After a flatten every channel is a block of its positions.
        words.append(f"in blocks of {math.prod(unknown)}")
    copies = component.index.shape[1]
    if copies > 1 and not others:
        words.append(f"{copies} positions per unit")
    return ", ".join(words)


def _sizes_beside(
    axis_map: AxisMap, component: Component, dim: int
) -> list[int]:
    """Sizes of the sites of a dimension over which the component does not lie."""
    sizes = []
    for site, size in enumerate(axis_map.site_shape):
        if axis_map.site_dims[site] == dim and site not in component.sites:
            sizes.append(size)
    return sizes


def _summary(spec: SpecFields) -> str:
    moving = [
        name
        for name in spec.tensors
        if spec.aliases.get(name, name) in spec.maps
    ]
    groups = _count(len(spec.groups), "group", "groups")
    return f"{groups}; {len(moving)} of {len(spec.tensors)} tensors move"


def _suggestion(name: str, names: list[str]) -> str:
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    # "weight" is near no name, but part of many.
    holding = [candidate for candidate in names if name and name in candidate]
    near = list(dict.fromkeys([*near, *holding]))[:3]
    if not near:
        return f"; it has {len(names)} others"
    return f"; did you mean {', '.join(map(repr, near))}?"


def _aligned(
    rows: Sequence[Sequence[str]], right: tuple[int, ...]
) -> list[str]:
    """Lines of a table; the columns in ``right`` are aligned to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = []
        for i, (text, width) in enumerate(zip(row, widths, strict=True)):
            cells.append(
                text.rjust(width) if i in right else text.ljust(width)
            )
        lines.append("  ".join(cells).rstrip())
    return lines


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"
