"""Asking the submodules of a network for their declarations, and writing them in the names of the network.

A submodule at ``blocks.3.trees`` says ``weight``; in the spec of the network the tensor is ``blocks.3.trees.weight``,
and its group ``trees`` is ``blocks.3.trees.trees``.  Whoever declares speaks for everything inside it, so the
submodules of a declaring module are not asked.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from torch import nn

from lightning_rebasin.errors import SpecError, StateDictError
from lightning_rebasin.symmetry.actions.action import registered_kinds
from lightning_rebasin.symmetry.spec.pin import pin_other_kinds
from lightning_rebasin.symmetry.spec.spec import PermutationSpec
from lightning_rebasin.symmetry.spec.values import (
    AxisMap,
    Group,
    Pin,
    TensorInfo,
)

#: The method that a module defines.
METHOD = "symmetry_spec"


@dataclass(frozen=True, eq=False)
class Declaration:
    """What one submodule declares.

    Args:
        path: Its name in the network, empty for the network itself.
        spec: Its groups and their places, in its own names, as far as they were asked for.
        whole: All that it declares.
    """

    path: str
    spec: PermutationSpec
    whole: PermutationSpec

    def name(self, local: str) -> str:
        """The name in the network of a tensor or group of the submodule."""
        return f"{self.path}.{local}" if self.path else local


@dataclass(frozen=True, eq=False)
class Declared:
    """A declaration in the names of the network.

    Args:
        groups: Groups by id, parents before children.
        maps: Where their units lie, by tensor.
        tensors: What the declaring module says about its tensors.
        pinned: What it (or the gate) took back, and why.
        local: For each group the id that the submodule gave it.
    """

    groups: Mapping[str, Group]
    maps: Mapping[str, AxisMap]
    tensors: Mapping[str, TensorInfo]
    pinned: tuple[Pin, ...]
    local: Mapping[str, str]


def declarations(
    module: nn.Module, kinds: Collection[str]
) -> tuple[Declaration, ...]:
    """What the submodules of a network declare.

    Args:
        module: The network.
        kinds: Groups of other kinds are left out; what they moved inside a unit moves with the unit.

    Raises:
        SpecError: A declaration is not a spec, does not fit its module, or names a kind that is not known.
    """
    found: list[Declaration] = []
    for path, part in module.named_modules():
        outer = [other.path for other in found]
        if any(path.startswith(f"{other}.") or not other for other in outer):
            continue
        if getattr(type(part), METHOD, None) is not None:
            spec = _ask(path, part)
            wanted = pin_other_kinds(spec, kinds)
            found.append(Declaration(path, wanted, spec))
    return tuple(found)


def _ask(path: str, part: nn.Module) -> PermutationSpec:
    who = f"{METHOD}() of {path or 'the module'!r} ({type(part).__name__})"
    spec = getattr(part, METHOD)()
    if not isinstance(spec, PermutationSpec):
        raise SpecError(
            f"{who} must return a PermutationSpec, not {type(spec).__name__}; see lightning_rebasin.declare"
        )
    try:
        spec.check_state(part.state_dict(), "the module")
    except StateDictError as error:
        raise SpecError(f"{who} does not fit its module: {error}") from error
    unknown = {g.kind for g in spec.groups.values()} - registered_kinds()
    if unknown:
        raise SpecError(
            f"{who} names the kind {sorted(unknown)[0]!r}, for which no action is registered"
        )
    return spec


def in_network(
    declaration: Declaration, network: PermutationSpec, taken: Collection[str]
) -> Declared:
    """A declaration in the names of the network.

    Args:
        declaration: What a submodule declares.
        network: The spec of the network, for tied tensors.
        taken: Ids of groups that cannot be used again.
    """
    spec = declaration.spec
    groups: dict[str, Group] = {}
    renamed: dict[str, str] = {}
    for group in spec.groups.values():
        name = declaration.name(group.id)
        while name in taken:
            name += "'"
        parent = group.parent and groups[renamed[group.parent.id]]
        renamed[group.id] = name
        groups[name] = Group(name, group.size, parent, group.kind)
    maps = {}
    for local, axis_map in spec.maps.items():
        components = []
        for component in axis_map.components:
            group_id = renamed[component.group]
            components.append(replace(component, group=group_id))
        # A tied tensor is mapped under its first name.
        name = declaration.name(local)
        name = network.aliases.get(name, name)
        maps[name] = AxisMap(name, axis_map.sites, tuple(components))
    tensors = {declaration.name(n): info for n, info in spec.tensors.items()}
    pins = [replace(p, tensor=declaration.name(p.tensor)) for p in spec.pinned]
    local_ids = {name: local for local, name in renamed.items()}
    return Declared(groups, maps, tensors, tuple(pins), local_ids)
