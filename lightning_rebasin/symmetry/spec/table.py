"""Classical hand-written specs: for each tensor a group, or nothing, per dimension."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lightning_rebasin.errors import SpecError
from lightning_rebasin.symmetry.spec.fields import (
    SpecArguments,
)
from lightning_rebasin.symmetry.spec.values import (
    AxisMap,
    Component,
    Group,
    TensorInfo,
    TensorKind,
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
    sizes: dict[str, tuple[int, ...]] = {}
    tensors = {}
    for name, value in shapes.items():
        shape = value.shape if isinstance(value, Tensor) else value
        sizes[name] = tuple(shape)
        # A table does not say what is a buffer; the statistics of batch norms are known by their names.
        kind: TensorKind = "parameter"
        if name.endswith(_BUFFER_SUFFIXES):
            kind = "buffer"
        tensors[name] = TensorInfo(sizes[name], kind)
    aliases = _tied(shapes)
    groups: dict[str, Group] = {}
    maps: dict[str, AxisMap] = {}
    for name, axes in table.items():
        if name not in sizes:
            raise SpecError(
                f"the table names tensor {name!r}, which the model does not have"
            )
        origin = aliases.get(name, name)
        if origin in table and tuple(table[origin]) != tuple(axes):
            raise SpecError(
                f"{name!r} and {origin!r} are one tied tensor, but the table treats them differently"
            )
        components = _components(name, axes, sizes[name], groups)
        if components:
            sites = tuple((size,) for size in sizes[name])
            maps[origin] = AxisMap(origin, sites, components)
    return SpecArguments(
        groups=groups, tensors=tensors, maps=maps, aliases=aliases
    )


def _components(
    name: str,
    axes: Sequence[str | None],
    sizes: tuple[int, ...],
    groups: dict[str, Group],
) -> tuple[Component, ...]:
    """One component per dimension with a group; groups that are new are added to ``groups``."""
    if isinstance(axes, str) or len(axes) != len(sizes):
        raise SpecError(
            f"tensor {name!r} has {len(sizes)} dimensions, the table gives {axes!r}"
        )
    found = []
    for dim, (group, size) in enumerate(zip(axes, sizes, strict=True)):
        if group is None:
            continue
        if not isinstance(group, str):
            raise SpecError(
                f"tensor {name!r} dimension {dim}: {group!r} is not a group name"
            )
        known = groups.setdefault(group, Group(group, size))
        if known.size != size:
            raise SpecError(
                f"group {group!r} has size {known.size}, but {name!r} dim {dim} has {size}"
            )
        found.append(Component(group, (dim,), torch.arange(size)[:, None]))
    return tuple(found)


def _tied(shapes: Mapping[str, Sequence[int] | Tensor]) -> dict[str, str]:
    """Names of tensors that are the same memory as an earlier one: name → the earlier name."""
    first: dict[tuple[int, tuple[int, ...], tuple[int, ...]], str] = {}
    aliases = {}
    for name, value in shapes.items():
        if not isinstance(value, Tensor) or value.is_meta:
            continue
        # Empty tensors all lie at address 0.
        if not value.numel():
            continue
        place = (value.data_ptr(), tuple(value.shape), value.stride())
        origin = first.setdefault(place, name)
        if origin != name:
            aliases[name] = origin
    return aliases
