"""A spec as JSON values and back.

The spec may come from a stranger's file, so reading trusts nothing: types, sizes and nesting are checked before an
index tensor is built, and every fault is a :class:`~lightning_rebasin.errors.SpecError`.

Version 2 numbers activation addresses per operation (see :class:`ActivationAddress`); files of version 1 counted all
contractions together, and are read with that numbering.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_rebasin.errors import SpecError
from lightning_rebasin.symmetry.spec.fields import (
    SpecArguments,
    SpecFields,
)
from lightning_rebasin.symmetry.spec.gauge import (
    centres_from_dict,
    folds_from_dict,
    folds_to_dict,
)
from lightning_rebasin.symmetry.spec.passed_biases import biases_from_list
from lightning_rebasin.symmetry.spec.values import (
    ActivationAddress,
    AxisMap,
    Component,
    Group,
    Importance,
    Pin,
    TensorInfo,
)

FORMAT = "lightning-rebasin-spec"
VERSION = 2
READABLE = (1, 2)
#: How often an element may act on one tensor: squared ReLU units are read with the power -2.
POWERS = (1, -1, 2, -2, 3, -3, 4, -4)
#: What Python and torch raise when a value of the file is not what it should be.
_MALFORMED = (
    TypeError,
    ValueError,
    AttributeError,
    LookupError,
    ArithmeticError,
    RuntimeError,
)


def spec_to_dict(spec: SpecFields) -> dict[str, Any]:
    """The spec as plain JSON values.

    Args:
        spec: Any spec.

    Returns:
        Dicts, lists, strings and integers.
    """
    activations = {}
    for group, addresses in spec.activations.items():
        activations[group] = [
            _address_to_dict(address, spec.groups) for address in addresses
        ]
    tensors = {}
    for name, info in spec.tensors.items():
        tensors[name] = _info_to_dict(info)
    return {
        "format": FORMAT,
        "version": VERSION,
        "groups": [_group_to_dict(group) for group in spec.groups.values()],
        "tensors": tensors,
        "maps": {
            name: _map_to_dict(m, spec.groups) for name, m in spec.maps.items()
        },
        "pinned": [vars(pin) for pin in spec.pinned],
        "aliases": dict(spec.aliases),
        "notes": list(spec.notes),
        "activations": activations,
        **folds_to_dict(spec),
        **({"limits": dict(spec.limits)} if spec.limits else {}),
        **({"untied": spec_to_dict(spec.untied)} if spec.untied else {}),
    }


def arguments_from_dict(data: Mapping[str, Any]) -> SpecArguments:
    """Inverse of :func:`spec_to_dict`.

    Args:
        data: Parsed JSON.

    Returns:
        The arguments that make the spec.

    Raises:
        SpecError: ``data`` is not a spec, is malformed, or is of another version.
    """
    if not isinstance(data, Mapping) or data.get("format") != FORMAT:
        raise SpecError(
            "this is not a permutation spec (no 'format': 'lightning-rebasin-spec')"
        )
    if data.get("version") not in READABLE:
        expected = " or ".join(map(str, READABLE))
        raise SpecError(
            f"spec version {data.get('version')!r} is not supported, expected {expected}"
        )
    try:
        return _read(data)
    except SpecError:
        raise
    except _MALFORMED as error:
        raise SpecError(f"malformed permutation spec: {error!r}") from error


def _read(data: Mapping[str, Any]) -> SpecArguments:
    """Whatever is wrong with the data raises some exception; the caller gives it a name."""
    groups: dict[str, Group] = {}
    for entry in data["groups"]:
        group = _group_from_dict(entry, groups)
        if group.id in groups:
            raise SpecError(f"the spec has two groups {group.id!r}")
        groups[group.id] = group
    tensors = {}
    for name, entry in data["tensors"].items():
        tensors[name] = _info_from_dict(entry)
    maps = {}
    for name, entry in data["maps"].items():
        maps[name] = _map_from_dict(name, entry, groups, tensors[name])
    activations = {}
    for group_id, addresses in data.get("activations", {}).items():
        activations[group_id] = tuple(
            _address_from_dict(a, groups) for a in addresses
        )
    return SpecArguments(
        groups=groups,
        tensors=tensors,
        maps=maps,
        pinned=tuple(Pin(**pin) for pin in data["pinned"]),
        aliases=dict(data["aliases"]),
        notes=tuple(data["notes"]),
        activations=activations,
        folds=folds_from_dict(data),
        centres=centres_from_dict(data),
        biases=biases_from_list(data.get("biases", [])),
        limits={str(g): str(why) for g, why in data.get("limits", {}).items()},
    )


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise SpecError(f"malformed permutation spec: {value!r} is not a size")
    return value


def _info_to_dict(info: TensorInfo) -> dict[str, Any]:
    data: dict[str, Any] = {"shape": list(info.shape), "kind": info.kind}
    if info.importance is not None:
        # Only where entries do not count alike, so that other files stay as they were.
        weights = list(info.importance.weights)
        data["importance"] = {"dim": info.importance.dim, "weights": weights}
    return data


def _info_from_dict(data: Mapping[str, Any]) -> TensorInfo:
    shape = tuple(_whole(n) for n in data["shape"])
    importance = None
    if "importance" in data:
        given = data["importance"]
        weights = tuple(float(weight) for weight in given["weights"])
        importance = Importance(_whole(given["dim"]), weights)
    return TensorInfo(shape, data["kind"], importance)


def _group_to_dict(group: Group) -> dict[str, Any]:
    parent = group.parent.id if group.parent else None
    return {
        "id": group.id,
        "size": group.size,
        "parent": parent,
        "kind": group.kind,
    }


def _group_from_dict(
    data: Mapping[str, Any], known: Mapping[str, Group]
) -> Group:
    parent = None if data["parent"] is None else known[data["parent"]]
    return Group(str(data["id"]), _whole(data["size"]), parent, data["kind"])


def _map_to_dict(
    axis_map: AxisMap, groups: Mapping[str, Group]
) -> dict[str, Any]:
    components = [_component_to_dict(c, groups) for c in axis_map.components]
    return {
        "sites": [list(factors) for factors in axis_map.sites],
        "components": components,
    }


def _component_to_dict(
    component: Component, groups: Mapping[str, Group]
) -> dict[str, Any]:
    group = groups[component.group]
    units = component.units(group)
    index = _encode_index(component.index, (*group.shape[:-1], units))
    data = {
        "group": component.group,
        "sites": list(component.sites),
        "index": index,
    }
    if units != group.size:
        data["units"] = units
    # Only kinds that act differently on readers have a power, so that files of permutations stay as they were.
    return data if component.power == 1 else {**data, "power": component.power}


def _map_from_dict(
    name: str,
    data: Mapping[str, Any],
    groups: Mapping[str, Group],
    info: TensorInfo,
) -> AxisMap:
    components = []
    for entry in data["components"]:
        components.append(_component_from_dict(name, entry, groups, info))
    sites = []
    for factors in data["sites"]:
        sites.append(tuple(_whole(size) for size in factors))
    return AxisMap(name, tuple(sites), tuple(components))


def _component_from_dict(
    name: str,
    data: Mapping[str, Any],
    groups: Mapping[str, Group],
    info: TensorInfo,
) -> Component:
    group = data["group"]
    if group not in groups:
        raise SpecError(
            f"tensor {name!r} is mapped to the unknown group {group!r}"
        )
    # A few numbers may ask for any amount of memory, so they are counted before the index is unfolded.
    units = _whole(data.get("units", groups[group].size))
    shape = (*groups[group].shape[:-1], units)
    if _count(data["index"], shape) > math.prod(info.shape):
        raise SpecError(
            f"tensor {name!r}: the index of group {group!r} has more positions than the tensor"
        )
    power = data.get("power", 1)
    if power not in POWERS:
        raise SpecError(
            f"tensor {name!r}: power {power!r} of group {group!r} is not one of {POWERS}"
        )
    index = _decode_index(data["index"], shape)
    return Component(group, tuple(data["sites"]), index, power)


def _address_to_dict(
    address: ActivationAddress, groups: Mapping[str, Group]
) -> dict[str, Any]:
    component = address.component
    return {
        "ordinal": address.ordinal,
        "op": address.op,
        "numbering": address.numbering,
        "argument": address.argument,
        "sites": [list(factors) for factors in address.sites],
        "group": component.group,
        "over": list(component.sites),
        "index": _encode_index(component.index, groups[component.group].shape),
    }


def _address_from_dict(
    data: Mapping[str, Any], groups: Mapping[str, Group]
) -> ActivationAddress:
    sites = tuple(_factors_at_run_time(factors) for factors in data["sites"])
    numbering = data.get("numbering", "together")
    if numbering not in ("op", "together"):
        raise SpecError(
            f"an activation of group {data['group']!r} is numbered by {numbering!r}"
        )
    return ActivationAddress(
        _whole(data["ordinal"]),
        str(data["op"]),
        _whole(data["argument"]),
        sites,
        _observed_component(data, sites, groups[data["group"]]),
        numbering,
    )


def _factors_at_run_time(factors: Sequence[Any]) -> tuple[int, ...]:
    """Row-major factors of a dimension; a size that depends on the input is written -1."""
    found = []
    for size in factors:
        found.append(size if size == -1 else _whole(size))
    return tuple(found)


def _observed_component(
    data: Mapping[str, Any], sites: tuple[tuple[int, ...], ...], group: Group
) -> Component:
    """Where the units lie in the operand, checked before and after the index is unfolded."""
    flat = [size for factors in sites for size in factors]
    over = tuple(_whole(site) for site in data["over"])
    positions = math.prod(flat[site] for site in over)
    # A few numbers may ask for any amount of memory, so they are counted first.
    if _count(data["index"], group.shape) > positions:
        raise SpecError(
            f"an activation of group {group.id!r} has more positions than its tensor"
        )
    index = _decode_index(data["index"], group.shape)
    if _reaches_outside(index, positions):
        raise SpecError(
            f"an activation of group {group.id!r} has positions outside its tensor"
        )
    return Component(group.id, over, index)


def _reaches_outside(index: Tensor, positions: int) -> bool:
    """Whether an index names a position that is not there."""
    if not index.numel():
        return False
    return int(index.min()) < 0 or int(index.max()) >= positions


def _count(index: Any, shape: tuple[int, ...]) -> int:
    """How many positions an index unfolds to: an affine one is a few numbers that may ask for any amount of memory."""
    if not isinstance(index, Mapping):
        return 0
    return math.prod((*shape, _whole(index["copies"])))


def _encode_index(index: Tensor, shape: tuple[int, ...]) -> Any:
    """An affine index as ``{"start", "strides", "copies"}``, anything else as nested lists.

    The units of a whole axis, ``[[0], [1], [2]]``, are start 0 and strides ``[1, 0]``.
    """
    grid = index.reshape(*shape, -1)
    start = int(grid[(0,) * grid.ndim])
    strides = []
    for dim, size in enumerate(grid.shape):
        one = tuple(1 if d == dim else 0 for d in range(grid.ndim))
        strides.append(int(grid[one]) - start if size > 1 else 0)
    affine = {"start": start, "strides": strides, "copies": grid.shape[-1]}
    unfolds = torch.equal(_decode_index(affine, shape), index.cpu())
    return affine if unfolds else index.tolist()


def _decode_index(data: Any, shape: tuple[int, ...]) -> Tensor:
    if not isinstance(data, Mapping):
        return torch.tensor(data, dtype=torch.long)
    sizes = (*shape, data["copies"])
    grid = torch.tensor(data["start"], dtype=torch.long)
    for size, stride in zip(sizes, data["strides"], strict=True):
        grid = grid.unsqueeze(-1) + torch.arange(size) * stride
    return grid.reshape(-1, data["copies"])
