"""A permutation spec with larger kinds for some of its groups.

A group whose units may be mixed changes its kind: the permutations are among its elements.  A group whose units have
signs or scales stays, and gets a group of size 1 inside each unit, which then says for both where they live.

For a ReLU unit, ``0`` (8) becomes ``0`` (8) with ``0/scale`` (1 inside each of 8), and ``2.weight``, which reads the
units, has the power −1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch

from lightning_rebasin.symmetry.continuous.candidates import (
    Candidate,
    Powers,
)
from lightning_rebasin.symmetry.continuous.operations import Limit
from lightning_rebasin.symmetry.spec.folds import Centre, Fold
from lightning_rebasin.symmetry.spec.spec import PermutationSpec
from lightning_rebasin.symmetry.spec.values import (
    AxisMap,
    Component,
    Group,
    Pin,
)

FOLDED = "a gain that is folded into its readers or writers is 1"


def enlarge(
    spec: PermutationSpec,
    candidates: Iterable[Candidate],
    limits: Mapping[str, str],
) -> PermutationSpec:
    """The spec in which some groups have larger kinds.

    Args:
        spec: Permutations only.
        candidates: One for each group that changes.
        limits: For each group, why its kind is not larger.

    Raises:
        Limit: A gain does not stand in the order of its readers.
    """
    chosen = {candidate.group: candidate for candidate in candidates}
    groups = _larger_groups(spec, chosen)
    folds: list[Fold] = []
    centres: list[Centre] = []
    for one in chosen.values():
        for fold in one.folds:
            check_order(spec, one.group, fold)
        folds += one.folds
        if one.centred:
            centres += _centres(spec, one)
    gains = {fold.gain for fold in folds}
    maps = {}
    for name, axis_map in spec.maps.items():
        if name not in gains:
            maps[name] = _with_powers(axis_map, chosen)
    pins = list(spec.pinned)
    for gain in sorted(gains):
        size = spec.tensors[gain].shape[0]
        pins.append(Pin(gain, 0, size, size, FOLDED))
    kept = {g: why for g, why in limits.items() if g in groups}
    return replace(
        spec,
        groups=groups,
        maps=maps,
        pinned=tuple(pins),
        folds=tuple(folds),
        centres=tuple(centres),
        limits=kept,
    )


def _larger_groups(
    spec: PermutationSpec, chosen: Mapping[str, Candidate]
) -> dict[str, Group]:
    """The groups with their new kinds, and the new groups inside units."""
    groups: dict[str, Group] = {}
    for group in spec.groups.values():
        found = chosen.get(group.id)
        if found is None:
            groups[group.id] = group
        elif found.inside:
            inner = inner_name(found)
            groups[group.id] = group
            groups[inner] = Group(inner, 1, group, found.kind)
        else:
            larger = replace(group, kind=found.kind)
            groups[group.id] = larger
    return groups


def inner_name(candidate: Candidate) -> str:
    """The name of the group inside every unit."""
    word = "number" if candidate.kind == "linear" else candidate.kind
    return f"{candidate.group}/{word}"


def _with_powers(
    axis_map: AxisMap, chosen: Mapping[str, Candidate]
) -> AxisMap:
    """The map in which components say how often elements act, and stand for the groups inside their units."""
    components: list[Component] = []
    #: How many copies of its units each group has had so far.
    before: dict[str, int] = {}
    for component in axis_map.components:
        found = chosen.get(component.group)
        powers: Powers = 0
        if found is not None:
            powers = found.powers.get(axis_map.tensor, 0)
        if found is None or not powers:
            components.append(component)
            continue
        name = inner_name(found) if found.inside else component.group
        copies = component.index.shape[1]
        first = before.get(name, 0)
        before[name] = first + copies
        if isinstance(powers, int):
            own = [powers] * copies
        else:
            own = list(powers[first : first + copies])
        for power in dict.fromkeys(own):
            columns = [copy for copy in range(copies) if own[copy] == power]
            index = component.index[:, columns]
            components.append(Component(name, component.sites, index, power))
    return replace(axis_map, components=tuple(components))


def check_order(spec: PermutationSpec, group: str, fold: Fold) -> None:
    """Raise unless gain, shift and readers have the units of a group along a whole dimension in their order.

    Raises:
        Limit: One of them has not.
    """
    wanted = [(fold.gain, 0)]
    wanted += [(reader.weight, reader.dim) for reader in fold.readers]
    if fold.shift is not None:
        wanted.append((fold.shift, 0))
    for name, dim in wanted:
        if not stands_in_order(spec.maps[name], group, dim):
            raise Limit(
                f"the gain {fold.gain!r} cannot be folded: its units stand in another order in {name!r}"
            )


def stands_in_order(axis_map: AxisMap, group: str, dim: int) -> bool:
    """Whether one dimension of a tensor holds the units of a group and nothing else, in their order."""
    size = axis_map.shape[dim]
    own = [c for c in axis_map.components if c.group == group]
    if len(own) != 1 or axis_map.sites[dim] != (size,):
        return False
    (component,) = own
    site = sum(len(factors) for factors in axis_map.sites[:dim])
    in_order = torch.equal(component.index, torch.arange(size)[:, None])
    return component.sites == (site,) and in_order


def _centres(spec: PermutationSpec, candidate: Candidate) -> list[Centre]:
    """Everything that the group acts on can be centred, if it stands along whole dimensions."""
    gains = {fold.gain for fold in candidate.folds}
    pairs = []
    for name in spec.tensors_of(candidate.group):
        if name in gains:
            continue
        axis_map = spec.maps[name]
        dims = axis_map.dims_of(candidate.group)
        if len(dims) != 1:
            return []
        dim = dims[0]
        if not stands_in_order(axis_map, candidate.group, dim):
            return []
        pairs.append((name, dim))
    return [Centre(tuple(pairs))]
