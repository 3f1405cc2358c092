"""A spec in words: the table of its groups, and the story of one tensor."""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Sequence

from lightning_rebasin.errors import SpecError
from lightning_rebasin.symmetry.spec.fields import (
    SpecFields,
    log10_symmetries,
    tensors_of,
)
from lightning_rebasin.symmetry.spec.moved import count_moved
from lightning_rebasin.symmetry.spec.untied import untied_names
from lightning_rebasin.symmetry.spec.values import (
    AxisMap,
    Component,
    Group,
)

#: How many axes of a group the table names before it counts the rest.
SHOWN = 3
#: A group in the table: its name, size, parent, log10 of its symmetries, axes; its kind if there are several.
Row = tuple[str, ...]
#: What elements of a kind do to the units, in words.
WORDS = {
    "sign": "signs",
    "scale": "positive scales",
    "orthogonal": "rotations",
    "orthogonal_mean": "rotations that keep the mean",
    "linear": "invertible linear maps",
    "plane": "a complex factor for each pair",
}


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
    rows: list[Row] = [
        ("group", "size", "inside", "log10", "acts on (tensor[dimension])")
    ]
    for group in spec.groups.values():
        rows.append(_group_row(spec, group))
    total = f"{log10_symmetries(spec):.1f}"
    rows.append(("total", "", "", total, _summary(spec)))
    kinds = ["kind", *(g.kind for g in spec.groups.values()), ""]
    if set(kinds) - {"kind", "permutation", ""}:
        # Specs of permutations, the usual ones, keep their narrower table.
        rows = [
            (row[0], kind, *row[1:])
            for row, kind in zip(rows, kinds, strict=True)
        ]
        lines = _aligned(rows, right=(2, 4))
    else:
        lines = _aligned(rows, right=(1, 3))
    lines += _pin_lines(spec)
    lines += _gauge_lines(spec)
    lines += _untied_lines(spec)
    lines += [f"note: {note}" for note in spec.notes]
    return "\n".join(lines)


def _pin_lines(spec: SpecFields) -> list[str]:
    """How many axes are pinned for each reason: the commonest first, equally common ones by name."""
    reasons = sorted(pin.reason for pin in spec.pinned)
    lines = []
    # Reasons that are equally common keep the order in which they were counted.
    for reason, count in Counter(reasons).most_common():
        axes = _count(count, "axis", "axes")
        lines.append(f"pinned: {axes}: {reason}")
    return lines


def _gauge_lines(spec: SpecFields) -> list[str]:
    """What is folded and centred, and why groups have no larger kind: one line for each reason."""
    lines = []
    if spec.folds:
        gains = _count(len(spec.folds), "gain", "gains")
        lines.append(f"gauge: {gains} folded into what reads them")
    if spec.biases:
        biases = _count(len(spec.biases), "bias", "biases")
        lines.append(f"gauge: {biases} of keys and values moved on")
    centred = sum(len(one.tensors) for one in spec.centres)
    if centred:
        tensors = _count(centred, "tensor", "tensors")
        lines.append(f"gauge: the mean is taken out of {tensors}")
    for group, why in spec.limits.items():
        kind = spec.groups[group].kind
        lines.append(f"{group} is no more than {kind}: {why}")
    return lines


def _untied_lines(spec: SpecFields) -> list[str]:
    """What separate tensors in the place of a tied one would allow: one line for each group that would grow."""
    untied = spec.untied
    if untied is None:
        return []
    names = ", ".join(map(repr, untied_names(spec, untied)))
    lines = []
    for group in untied.groups.values():
        old = spec.groups.get(group.id)
        if old is not None and old.kind != group.kind:
            what = WORDS.get(group.kind, group.kind)
            lines.append(
                f"untying {names} would allow: {what} ({group.kind}) for {group.id}"
            )
    return lines


def _group_row(spec: SpecFields, group: Group) -> Row:
    size = str(group.size)
    inside = "-"
    if group.parent is not None:
        size = f"{group.instances}×{size}"
        inside = group.parent.id
    axes = []
    for name in tensors_of(spec, group.id):
        for dim in spec.maps[name].dims_of(group.id):
            axes.append(f"{name}[{dim}]")
    shown = ", ".join(axes[:SHOWN])
    rest = len(axes) - SHOWN
    if rest > 0:
        shown += f" (+{rest} more)"
    log10 = f"{group.log10_symmetries:.1f}"
    return group.id, size, inside, log10, shown


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
    same = [origin]
    for name, target in spec.aliases.items():
        if target == origin:
            same.append(name)
    lines = [f"{tensor}: {info.kind} {info.shape}"]
    others = ", ".join(name for name in same if name != tensor)
    if others:
        lines[0] += f", tied to {others}"
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
        stays -= count_moved(axis_map, dim)
        for component in axis_map.components:
            if dim in _dims(axis_map, component):
                parts.append(_movement(spec, axis_map, component, dim))
    # A dimension of size 0 is said to be pinned: it must say something.
    if stays or not parts:
        share = f"{stays} of {size} positions pinned"
        if stays == size:
            share = "pinned"
        parts.append(share + _why(spec, tensor, dim))
    return parts


def _why(spec: SpecFields, tensor: str, dim: int) -> str:
    """The reasons why positions of a dimension stay, behind a colon; empty if there is none."""
    reasons = set()
    for pin in spec.pinned:
        if (pin.tensor, pin.dim) == (tensor, dim):
            place = f" (at {pin.where})" if pin.where else ""
            reasons.add(pin.reason + place)
    if not reasons:
        return ""
    return ": " + "; ".join(sorted(reasons))


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
    if group.kind != "permutation":
        side = "written" if component.power > 0 else "read"
        what = WORDS.get(group.kind, group.kind)
        words.append(f"{what} ({group.kind}), {side} here")
    words += _limit_of(spec, group)
    others = sorted(_dims(axis_map, component) - {dim})
    if others:
        dims = ", ".join(map(str, others))
        words.append(f"together with dimension {dims}")
    unknown = _sizes_beside(axis_map, component, dim)
    if unknown:
        # After a flatten every channel is a block of its positions.
        size = math.prod(unknown)
        words.append(f"in blocks of {size}")
    copies = component.index.shape[1]
    if copies > 1 and not others:
        words.append(f"{copies} positions per unit")
    return ", ".join(words)


def _limit_of(spec: SpecFields, group: Group) -> list[str]:
    """Why a group has no larger kind; numbers inside units stand for the units as well."""
    words = []
    limit = spec.limits.get(group.id)
    if limit:
        words.append(f"no more than {group.kind} because {limit}")
    outer = group.parent
    if group.size == 1 and outer is not None and outer.id in spec.limits:
        words.append(
            f"the units no more than {outer.kind} because {spec.limits[outer.id]}"
        )
    return words


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
    moving = 0
    for name in spec.tensors:
        # A tied tensor moves with its origin.
        origin = spec.aliases.get(name, name)
        moving += origin in spec.maps
    groups = _count(len(spec.groups), "group", "groups")
    return f"{groups}; {moving} of {len(spec.tensors)} tensors move"


def _suggestion(name: str, names: list[str]) -> str:
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    # "weight" is near no name, but part of many.
    holding = [candidate for candidate in names if name and name in candidate]
    near = list(dict.fromkeys([*near, *holding]))[:3]
    if not near:
        some = ", ".join(map(repr, names[:3]))
        return f"; it has {len(names)} others, the first are {some}"
    offered = ", ".join(map(repr, near))
    return f"; did you mean {offered}?"


def _aligned(
    rows: Sequence[Sequence[str]], right: tuple[int, ...]
) -> list[str]:
    """Lines of a table; the columns in ``right`` are aligned to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = []
        for i, text in enumerate(row):
            if i in right:
                cells.append(text.rjust(widths[i]))
            else:
                cells.append(text.ljust(widths[i]))
        lines.append("  ".join(cells).rstrip())
    return lines


def _count(number: int, one: str, many: str) -> str:
    word = one if number == 1 else many
    return f"{number} {word}"
