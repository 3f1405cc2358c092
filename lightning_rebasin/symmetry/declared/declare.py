"""Writing a declaration: which groups a module has, and where their units lie in its tensors.

A mixture ``f(x) = Σ_k a_k · exp(−(d_kᵀx)²)`` has interchangeable components, and the sign of each direction is free,
which no trace of the forward pass can know.  Its module says so::

    def symmetry_spec(self):
        components = Group("components", len(self.height))
        sign = Group("sign", 1, components, "sign")
        return declare(self, {"direction": [on(sign, 0)], "height": [on(components, 0)]})

The rows of ``direction`` lie in ``sign``, which lies in ``components``: they move with their component and may change
sign.  The entries of ``height`` only move.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_rebasin.errors import SpecError
from lightning_rebasin.symmetry.spec.spec import PermutationSpec
from lightning_rebasin.symmetry.spec.values import (
    AxisMap,
    Component,
    Group,
    Importance,
    TensorInfo,
    TensorKind,
)


@dataclass(frozen=True, eq=False)
class Place:
    """Where the units of a group lie in one tensor; made by :func:`on`.

    Args:
        group: The group.
        dims: Dimensions of the tensor, ascending.
        positions: LongTensor ``(units, copies)`` of flat positions over ``dims``; ``None`` for all of them in order.
        power: −1 where the units are read by a map that must undo the change, see
            :class:`~lightning_rebasin.symmetry.actions.action.Action`.
    """

    group: Group
    dims: tuple[int, ...]
    positions: Tensor | None = None
    power: int = 1


def on(
    group: Group, *dims: int, positions: Tensor | None = None, power: int = 1
) -> Place:
    """The units of a group lie along these dimensions of a tensor.

    Args:
        group: The group.  The units of all its instances are counted: 3 nodes in each of 256 trees fill 768 positions.
        *dims: One dimension, or several ascending ones over which the units lie together, row-major.
        positions: LongTensor ``(units, copies)``: the flat positions over ``dims`` that belong to each unit; by default
            every unit has one position, in order.
        power: +1 where units are written, −1 where they are read by a map that must undo the change.
    """
    return Place(group, dims, positions, power)


def declare(
    module: nn.Module,
    places: Mapping[str, Sequence[Place]],
    *,
    importance: Mapping[str, Importance] | None = None,
) -> PermutationSpec:
    """A declaration of a module's symmetries, in its own names: what ``symmetry_spec`` returns.

    It is not proved: :func:`~lightning_rebasin.infer_spec` does that, and pins what turns out to be wrong.

    Args:
        module: The module; only the names and shapes of its tensors are read.
        places: For each of its tensors, where units lie.
        importance: For tensors whose entries do not count alike in the matching objective, how much they count.

    Returns:
        The declared groups.

    Raises:
        SpecError: A tensor is unknown, a dimension does not exist, or the units do not fit it.

    Example:
        >>> unit = Group("unit", 3)
        >>> layer = nn.Linear(2, 3)
        >>> declare(layer, {"weight": [on(unit, 0)], "bias": [on(unit, 0)]})
        PermutationSpec(1 groups, 10^0.8 symmetries, 2 of 2 tensors permutable)
    """
    tensors = _tensors(module, importance or {})
    groups: dict[str, Group] = {}
    maps = {}
    for name, own in places.items():
        if name not in tensors:
            raise SpecError(
                f"{type(module).__name__} declares a symmetry of {name!r}, a tensor that it does not have"
            )
        shape = tensors[name].shape
        for place in own:
            _add_groups(place.group, groups)
        components = tuple(_component(name, shape, place) for place in own)
        sites = tuple((size,) for size in shape)
        maps[name] = AxisMap(name, sites, components)
    return PermutationSpec(groups, tensors, maps)


def _tensors(
    module: nn.Module, importance: Mapping[str, Importance]
) -> dict[str, TensorInfo]:
    parameters = dict(module.named_parameters(remove_duplicate=False))
    found = {}
    for name, value in module.state_dict().items():
        # Modules may keep anything in their extra state.
        if isinstance(value, Tensor):
            kind: TensorKind = "parameter" if name in parameters else "buffer"
            shape = tuple(value.shape)
            found[name] = TensorInfo(shape, kind, importance.get(name))
    return found


def _add_groups(group: Group, groups: dict[str, Group]) -> None:
    """Enter a group, its ancestors first."""
    if group.parent is not None:
        _add_groups(group.parent, groups)
    if groups.setdefault(group.id, group) != group:
        raise SpecError(f"two different groups are declared as {group.id!r}")


def _component(name: str, shape: tuple[int, ...], place: Place) -> Component:
    dims, group = place.dims, place.group
    if not dims or not set(dims) <= set(range(len(shape))):
        raise SpecError(
            f"group {group.id!r} is declared on the dimensions {dims} of {name!r}, which has {len(shape)}"
        )
    if place.positions is not None:
        return Component(group.id, dims, place.positions.cpu(), place.power)
    size = math.prod(shape[dim] for dim in dims)
    index = torch.arange(size)[:, None]
    return Component(group.id, dims, index, place.power)
