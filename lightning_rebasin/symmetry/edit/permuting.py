"""The part of a spec that only changes the order of units: for engines that know permutations."""

from __future__ import annotations

from dataclasses import replace

from lightning_rebasin.symmetry.actions.kinds import PERMUTATION
from lightning_rebasin.symmetry.actions.transform import carried_map
from lightning_rebasin.symmetry.spec.spec import PermutationSpec


def permuting(spec: PermutationSpec) -> PermutationSpec:
    """The permutations of a spec alone; what lies inside their units moves along.

    Heads with an invertible map inside each become heads of so many positions.  The weights are taken as they come:
    nothing is folded.

    Args:
        spec: A spec with any kinds of groups.

    Returns:
        A spec over the same tensors whose groups are all permutations.

    Example:
        >>> from lightning_rebasin.symmetry import Group
        >>> spec = PermutationSpec.from_table({"w": ("h", None)}, {"w": (3, 1)})
        >>> permuting(spec) == spec
        True
    """
    groups = {
        name: group
        for name, group in spec.groups.items()
        if group.kind == PERMUTATION
    }
    maps = {}
    for name, axis_map in spec.maps.items():
        moved = carried_map(axis_map, spec.groups)
        if moved.components:
            maps[name] = moved
    return replace(
        spec,
        groups=groups,
        maps=maps,
        activations={},
        folds=(),
        biases=(),
        centres=(),
        limits={},
        untied=None,
    )
