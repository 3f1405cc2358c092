"""A spec as JSON values and back.

The spec may come from a stranger's file, so reading trusts nothing: types, sizes and nesting are checked before an
index tensor is built, and every fault is a :class:`~lightning_rebasin.errors.SpecError`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_rebasin.errors import SpecError
from lightning_rebasin.symmetry.spec.values import (
    ActivationAddress,
    AxisMap,
    Component,
    Group,
    Pin,
    SpecArguments,
    SpecFields,
    TensorInfo,
)

FORMAT = "lightning-rebasin-spec"
VERSION = 1


def spec_to_dict(spec: SpecFields) -> dict[str, Any]:
    """The spec as plain JSON values.

    Args:
        spec: Any spec.

    Returns:
        Dicts, lists, strings and integers.
    """
    return {
        "format": FORMAT,
        "version": VERSION,
        "groups": [
            {
                "id": g.id,
                "size": g.size,
                "parent": g.parent.id if g.parent else None,
                "kind": g.kind,
            }
            for g in spec.groups.values()
        ],
        "tensors": {
            name: {"shape": list(i.shape), "kind": i.kind} for name, i in spec.tensors.items()
        },
        "maps": {name: _map_to_dict(m, spec.groups) for name, m in spec.maps.items()},
        "pinned": [vars(pin) for pin in spec.pinned],
        "aliases": dict(spec.aliases),
        "notes": list(spec.notes),
        "activations": {
            g: [_address_to_dict(site, spec.groups) for site in own]
            for g, own in spec.activations.items()
        },
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
        raise SpecError("this is not a permutation spec (no 'format': 'lightning-rebasin-spec')")
    if data.get("version") != VERSION:
        raise SpecError(
            f"spec version {data.get('version')!r} is not supported, expected {VERSION}"
        )
    try:
        groups: dict[str, Group] = {}
        for g in data["groups"]:
            if g["id"] in groups:
                raise SpecError(f"the spec has two groups {g['id']!r}")
            parent = groups[g["parent"]] if g["parent"] is not None else None
            groups[str(g["id"])] = Group(g["id"], _whole(g["size"]), parent, g["kind"])
        tensors = {
            name: TensorInfo(tuple(_whole(n) for n in i["shape"]), i["kind"])
            for name, i in data["tensors"].items()
        }
        maps = {
            name: _map_from_dict(name, m, groups, tensors[name]) for name, m in data["maps"].items()
        }
        activations = {
            group: tuple(_address_from_dict(address, groups) for address in own)
            for group, own in data.get("activations", {}).items()
        }
        return SpecArguments(
            groups=groups,
            tensors=tensors,
            maps=maps,
            pinned=tuple(Pin(**pin) for pin in data["pinned"]),
            aliases=data["aliases"],
            notes=tuple(data["notes"]),
            activations=activations,
        )
    except (
        KeyError,
        TypeError,
        AttributeError,
        RuntimeError,
        IndexError,
        OverflowError,
        ValueError,
    ) as error:
        if isinstance(error, SpecError):
            raise
        raise SpecError(f"malformed permutation spec: {error!r}") from error


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise SpecError(f"malformed permutation spec: {value!r} is not a size")
    return value


def _map_to_dict(axis_map: AxisMap, groups: Mapping[str, Group]) -> dict[str, Any]:
    components = [
        {
            "group": c.group,
            "sites": list(c.sites),
            "index": _encode_index(c.index, groups[c.group].shape),
        }
        for c in axis_map.components
    ]
    return {"sites": [list(factors) for factors in axis_map.sites], "components": components}


def _map_from_dict(
    name: str, data: Mapping[str, Any], groups: Mapping[str, Group], info: TensorInfo
) -> AxisMap:
    components = []
    for c in data["components"]:
        if c["group"] not in groups:
            raise SpecError(f"tensor {name!r} is mapped to the unknown group {c['group']!r}")
        shape, index = groups[c["group"]].shape, c["index"]
        # An affine index is a few numbers that unfold to many: no more than the tensor has positions.
        if isinstance(index, Mapping) and math.prod((*shape, _whole(index["copies"]))) > math.prod(
            info.shape
        ):
            raise SpecError(
                f"tensor {name!r}: the index of group {c['group']!r} has more positions than the tensor"
            )
        components.append(Component(c["group"], tuple(c["sites"]), _decode_index(index, shape)))
    return AxisMap(
        name,
        tuple(tuple(_whole(n) for n in factors) for factors in data["sites"]),
        tuple(components),
    )


def _address_to_dict(site: ActivationAddress, groups: Mapping[str, Group]) -> dict[str, Any]:
    component = site.component
    return {
        "ordinal": site.ordinal,
        "op": site.op,
        "argument": site.argument,
        "sites": [list(factors) for factors in site.sites],
        "group": component.group,
        "over": list(component.sites),
        "index": _encode_index(component.index, groups[component.group].shape),
    }


def _address_from_dict(data: Mapping[str, Any], groups: Mapping[str, Group]) -> ActivationAddress:
    sites = tuple(tuple(n if n == -1 else _whole(n) for n in factors) for factors in data["sites"])
    flat, over = [n for factors in sites for n in factors], tuple(_whole(s) for s in data["over"])
    shape, index = groups[data["group"]].shape, data["index"]
    positions = math.prod(flat[s] for s in over)
    if isinstance(index, Mapping) and math.prod((*shape, _whole(index["copies"]))) > positions:
        raise SpecError(
            f"an activation of group {data['group']!r} has more positions than its tensor"
        )
    decoded = _decode_index(index, shape)
    if decoded.numel() and (int(decoded.min()) < 0 or int(decoded.max()) >= positions):
        raise SpecError(
            f"an activation of group {data['group']!r} has positions outside its tensor"
        )
    return ActivationAddress(
        _whole(data["ordinal"]),
        str(data["op"]),
        _whole(data["argument"]),
        sites,
        Component(data["group"], over, decoded),
    )


def _encode_index(index: Tensor, shape: tuple[int, ...]) -> Any:
    """An affine index as ``{"start", "strides", "copies"}``, anything else as nested lists."""
    grid = index.reshape(*shape, -1)
    start = int(grid[(0,) * grid.ndim])
    strides = []
    for dim in range(grid.ndim):
        one = tuple(1 if d == dim else 0 for d in range(grid.ndim))
        strides.append(int(grid[one]) - start if grid.shape[dim] > 1 else 0)
    affine = {"start": start, "strides": strides, "copies": grid.shape[-1]}
    return affine if torch.equal(_decode_index(affine, shape), index.cpu()) else index.tolist()


def _decode_index(data: Any, shape: tuple[int, ...]) -> Tensor:
    if not isinstance(data, Mapping):
        return torch.tensor(data, dtype=torch.long)
    sizes: Iterable[int] = (*shape, data["copies"])
    grid = torch.tensor(data["start"], dtype=torch.long)
    for size, stride in zip(sizes, data["strides"], strict=True):
        grid = grid.unsqueeze(-1) + torch.arange(size) * stride
    return grid.reshape(-1, data["copies"])
