"""Classical hand-written specs: for each tensor a group, or nothing, per dimension."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lightning_rebasin.errors import SpecError
from lightning_rebasin.symmetry.spec.values import (
    AxisMap,
    Component,
    Group,
    SpecArguments,
    TensorInfo,
)

_BUFFER_SUFFIXES = ("running_mean", "running_var", "num_batches_tracked")


def arguments_from_table(
    table: Mapping[str, Sequence[str | None]],
    shapes: Mapping[str, Sequence[int] | Tensor],
) -> SpecArguments:
    """Read a table ``{tensor: (group or None per dimension)}`` as in the code of Ainsworth et al. 2023.

    Args:
        table: For each tensor the group that permutes each of its dimensions; tensors left out are not permuted.
        shapes: Shapes of all tensors: a state dict or ``{name: shape}``.

    Returns:
        The spec, unproved.  Tensors of a state dict that share storage are tied.

    Raises:
        SpecError: A group has two sizes, the table names an unknown tensor, or does not fit its dimensions.
    """
    sizes = {
        name: tuple(s.shape if isinstance(s, Tensor) else s)
        for name, s in shapes.items()
    }
    aliases = _tied(shapes)
    groups: dict[str, Group] = {}
    maps: dict[str, AxisMap] = {}
    for name, axes in table.items():
        if name not in sizes:
            raise SpecError(
                f"the table names tensor {name!r}, which the model does not have"
            )
        if isinstance(axes, str) or len(axes) != len(sizes[name]):
            raise SpecError(
                f"tensor {name!r} has {len(sizes[name])} dimensions, the table gives {axes!r}"
            )
        components = []
        for dim, (group, size) in enumerate(zip(axes, sizes[name], strict=True)):
            if group is None:
                continue
            if not isinstance(group, str):
                raise SpecError(
                    f"tensor {name!r} dimension {dim}: {group!r} is no group name"
                )
            if groups.setdefault(group, Group(group, size)).size != size:
                raise SpecError(
                    f"group {group!r} has size {groups[group].size}, but {name!r} dim {dim} has {size}"
                )
            components.append(Component(group, (dim,), torch.arange(size)[:, None]))
        origin = aliases.get(name, name)
        if origin in table and tuple(table[origin]) != tuple(axes):
            raise SpecError(
                f"{name!r} and {origin!r} are one tied tensor, but the table treats them differently"
            )
        maps[origin] = AxisMap(
            origin, tuple((size,) for size in sizes[name]), tuple(components)
        )
    tensors = {
        name: TensorInfo(
            size, "buffer" if name.endswith(_BUFFER_SUFFIXES) else "parameter"
        )
        for name, size in sizes.items()
    }
    acting = {name: axis_map for name, axis_map in maps.items() if axis_map.components}
    return SpecArguments(groups=groups, tensors=tensors, maps=acting, aliases=aliases)


def _tied(shapes: Mapping[str, Sequence[int] | Tensor]) -> dict[str, str]:
    """Names of tensors that are the same memory as an earlier one: name → the earlier name."""
    first: dict[tuple[int, tuple[int, ...], tuple[int, ...]], str] = {}
    aliases = {}
    for name, value in shapes.items():
        if isinstance(value, Tensor) and value.numel() and not value.is_meta:
            origin = first.setdefault(
                (value.data_ptr(), tuple(value.shape), value.stride()), name
            )
            if origin != name:
                aliases[name] = origin
    return aliases
