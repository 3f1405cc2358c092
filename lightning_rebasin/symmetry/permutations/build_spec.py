"""From cells to the contents of a :class:`~lightning_rebasin.symmetry.spec.spec.PermutationSpec`.

A cell that is a group becomes a :class:`Group`; the elements of a tensor's axis tell which positions move with which
member; an operand of a contraction tells where the units can be observed.  ``Linear(3, 2) → ReLU → Linear(2, 2)`` ends
as

    group        ``"0"``, size 2
    maps         0.weight: site 0 with the index [[0], [1]];  0.bias likewise;  2.weight: site 1 likewise
    pins         0.weight dimension 1 (it meets the input), 2.weight dimension 0 and 2.bias (outputs)
    activations  group ``"0"``: the second ``addmm``, argument 0, whose sites are ((any size,), (2,)), over site 1
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from lightning_rebasin.symmetry.permutations.axis_maps import (
    build_axis_map,
    component_of,
)
from lightning_rebasin.symmetry.permutations.cells import Cells, moving
from lightning_rebasin.symmetry.permutations.elements import IntArray, Table
from lightning_rebasin.symmetry.permutations.labels import Label
from lightning_rebasin.symmetry.permutations.named_groups import NamedGroups
from lightning_rebasin.symmetry.permutations.reasons import Reasons, pins_of
from lightning_rebasin.symmetry.permutations.rules.base import Contraction
from lightning_rebasin.symmetry.spec.values import (
    ActivationAddress,
    AxisMap,
    Group,
    Pin,
)

Sites = tuple[int, ...]


@dataclass
class Assembly:
    """Groups and maps of what was found.

    ``inexpressible`` holds elements of cells that follow several parents in a way that no axis map can say.
    """

    groups: dict[str, Group] = field(default_factory=dict)
    maps: dict[str, AxisMap] = field(default_factory=dict)
    pins: list[Pin] = field(default_factory=list)
    inexpressible: list[IntArray] = field(default_factory=list)
    activations: dict[str, list[ActivationAddress]] = field(
        default_factory=dict
    )
    named: NamedGroups | None = None


def assemble(
    found: Cells,
    states: Mapping[str, Label],
    tables: list[Table],
    contractions: Sequence[Contraction],
) -> Assembly:
    """Make groups, axis maps and pins.

    Args:
        found: The cells.
        states: Labels of parameters and buffers.
        tables: The constraints, for the reasons.
        contractions: Where units can be observed.
    """
    named = NamedGroups(found, states)
    result = Assembly(named=named)
    # Parents first, as they were named.
    for group in named.groups.values():
        result.groups[group.id] = group
    why = Reasons(found, tables)
    moves = moving(found)
    for tensor, label in states.items():
        axis_map = build_axis_map(named, tensor, label, result.inexpressible)
        if axis_map is not None:
            result.maps[tensor] = axis_map
        result.pins += pins_of(moves, tensor, label, why)
    for contraction in contractions:
        # Units are observed on one input at a time: the first one stands for all.
        if contraction.example == 0:
            _observe(named, contraction, result)
    return result


def _observe(named: NamedGroups, seen: Contraction, result: Assembly) -> None:
    """Turn an operand into activation addresses of the groups that are contracted there."""
    label = seen.label
    permuted = [part for part in label.parts if named.groups_on(part)]
    for part in label.parts:
        # Where other dimensions are permuted too, samples of two models would not correspond.
        if any(other is not part for other in permuted):
            continue
        if not seen.contracted.intersection(part.sites):
            continue
        sites, number = _run_time_sites(label, set(part.sites))
        own = tuple(number[site] for site in part.sites)
        cells = named.cells_on(part)
        for cell in named.groups_on(part):
            members = len(named.found.cells[cell].members)
            # A slice may hold some members twice and others once: then no row of samples belongs to each.
            if (cells == cell).sum() % members:
                continue
            component = replace(component_of(named, cell, part), sites=own)
            address = ActivationAddress(
                seen.ordinal, seen.op, seen.argument, sites, component
            )
            addresses = result.activations.setdefault(component.group, [])
            addresses.append(address)


def _run_time_sites(
    label: Label, own: set[int]
) -> tuple[tuple[Sites, ...], dict[int, int]]:
    """Sites of an operand when the model runs on other inputs, and their numbers.

    An operand (batch 5, channels 4 · 9 positions) whose channels are units has the sites ``((-1,), (4, -1))``: sites
    that carry no units have any size, one in each dimension.

    Args:
        label: Label of the operand.
        own: Sites that carry units.

    Returns:
        The sites of each dimension, and for each site in ``own`` its number among them.
    """
    sites: list[Sites] = []
    number: dict[int, int] = {}
    count = 0
    for dim in label.dims:
        factors: list[int] = []
        for site in dim:
            size = label.sizes[site]
            if site in own:
                number[site] = count + len(factors)
                factors.append(size)
            elif -1 not in factors:
                factors.append(-1)
            elif factors[-1] != -1:
                # Only one size can be told from the whole, so a second one is taken as it was traced.
                factors.append(size)
        # A dimension of size 1 has no site, but it may be larger for another input.
        sites.append(tuple(factors or [-1]))
        count += len(sites[-1])
    return tuple(sites), number
