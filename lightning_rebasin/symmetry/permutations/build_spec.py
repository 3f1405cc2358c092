"""From cells to a :class:`~lightning_rebasin.symmetry.spec.spec.PermutationSpec`: names, indices, reasons.

A cell that is a group becomes a :class:`Group`, named after the module of the first tensor on which it acts; the
elements of a tensor's axis tell which positions move with which member.  For ``Linear(3, 4) → relu → Linear(4, 2)``:

    group    ``"0"``, size 4
    maps     0.weight: site 0 with index [[0], [1], [2], [3]];  0.bias likewise;  2.weight: site 1 likewise
    pins     0.weight dimension 1 (it meets an input), 2.weight dimension 0 and 2.bias (outputs)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from lightning_rebasin.symmetry.permutations.cells import Cells, moving
from lightning_rebasin.symmetry.permutations.elements import IntArray, Table
from lightning_rebasin.symmetry.permutations.labels import Label, Part
from lightning_rebasin.symmetry.permutations.reasons import Reasons, pins_of
from lightning_rebasin.symmetry.permutations.rules.base import Contraction
from lightning_rebasin.symmetry.permutations.shared_axes import SharedAxes
from lightning_rebasin.symmetry.spec.values import (
    ActivationAddress,
    AxisMap,
    Component,
    Group,
    Pin,
)


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


class Namer:
    """Finds a group and a member for every element.

    Args:
        found: The cells.
        states: Labels of the state; groups are named after the first tensor on which they act.
    """

    def __init__(self, found: Cells, states: Mapping[str, Label]) -> None:
        colouring = found.colouring
        self.found = found
        self.cell_of = colouring.cells[colouring.classes]
        self.member_of = np.full(len(colouring.cells), -1, dtype=np.int64)
        for cell in found.cells.values():
            if cell.kind == "group":
                self.member_of[cell.members] = np.arange(len(cell.members))
        self.is_group = np.zeros(
            int(colouring.cells.max(initial=0)) + 1, dtype=bool
        )
        self.follows = self.is_group.copy()
        for cell in found.cells.values():
            kind = self.is_group if cell.kind == "group" else self.follows
            kind[cell.number] = True
        self.products = SharedAxes(found)
        self.groups = self._name(states)

    def _name(self, states: Mapping[str, Label]) -> dict[int, Group]:
        """Groups by cell, in the order of the first tensor dimension on which they act, parents first."""
        found: dict[int, Group] = {}
        taken: set[str] = set()
        for tensor, label in states.items():
            for part in label.parts:
                for number in self._acting_on(part):
                    self._add(number, tensor, found, taken)
        return found

    def _acting_on(self, part: Part) -> list[int]:
        """Cells of the groups that move some positions, in the order in which they appear."""
        cells = self.cell_of[part.elements.ids.reshape(-1)]
        own, first = np.unique(cells[self.is_group[cells]], return_index=True)
        acting: list[int] = own[np.argsort(first)].tolist()
        # A group may act only through units that follow it (the heads of a fused projection).
        for cell in np.unique(cells[self.follows[cells]]).tolist():
            acting += self.products.groups_of(cell)
        return acting

    def _add(
        self,
        number: int,
        tensor: str,
        found: dict[int, Group],
        taken: set[str],
    ) -> Group:
        """Name a group after the module of a tensor, its parents before it."""
        if number in found:
            return found[number]
        cell = self.found.cells[number]
        parent = None
        if cell.parents:
            parent = self._add(cell.parents[0], tensor, found, taken)
        base = tensor.rpartition(".")[0] or tensor
        name, count = base, 1
        while name in taken:
            count += 1
            name = f"{base}#{count}"
        taken.add(name)
        found[number] = Group(name, cell.size, parent)
        return found[number]


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
    namer = Namer(found, states)
    result = Assembly()
    result.groups = {g.id: g for g in _parents_first(namer.groups.values())}
    why = Reasons(found, tables)
    moves = moving(found)
    for tensor, label in states.items():
        axis_map = _axis_map(namer, tensor, label, result)
        if axis_map is not None:
            result.maps[tensor] = axis_map
        result.pins += pins_of(moves, tensor, label, why)
    for contraction in contractions:
        if contraction.example == 0:
            _observe(namer, contraction, result)
    return result


def _observe(namer: Namer, seen: Contraction, result: Assembly) -> None:
    """Turn an operand into activation addresses of the groups that are contracted there.

    An operand whose other dimensions are permuted too is left out: its samples would not correspond.
    """
    label = seen.label
    permuted = [part for part in label.parts if _has_groups(namer, part)]
    for part in label.parts:
        others = [other for other in permuted if other is not part]
        if others or not seen.contracted.intersection(part.sites):
            continue
        sites, number = _run_time_sites(label, set(part.sites))
        own = tuple(number[site] for site in part.sites)
        flat = part.elements.ids.reshape(-1)
        cells = namer.cell_of[flat]
        for cell in np.unique(cells[namer.is_group[cells]]).tolist():
            members = len(namer.found.cells[cell].members)
            if np.count_nonzero(cells == cell) % members:
                continue
            component = _component(namer, cell, own, flat)
            address = ActivationAddress(
                seen.ordinal, seen.op, seen.argument, sites, component
            )
            result.activations.setdefault(component.group, []).append(address)


def _has_groups(namer: Namer, part: Part) -> bool:
    return bool(namer.is_group[namer.cell_of[part.elements.ids]].any())


def _run_time_sites(
    label: Label, own: set[int]
) -> tuple[tuple[tuple[int, ...], ...], dict[int, int]]:
    """Sites of an operand, those that carry no units of unknown size (one in each dimension).

    An operand (batch 5, channels 4 · 9 positions) whose channels are units has the sites ``((-1,), (4, -1))``.
    """
    sites: list[tuple[int, ...]] = []
    number: dict[int, int] = {}
    count = 0
    for dim in label.dims:
        factors: list[int] = []
        for site in dim or (None,):
            if site is not None and site in own:
                number[site] = count + len(factors)
                factors.append(label.sizes[site])
            elif site is None or -1 not in factors:
                factors.append(-1)
            elif factors[-1] != -1:
                # only one size can be told from the whole, so a second one is taken as it was traced
                factors.append(label.sizes[site])
        sites.append(tuple(factors))
        count += len(factors)
    return tuple(sites), number


def _parents_first(groups: Iterable[Group]) -> list[Group]:
    done: list[Group] = []

    def visit(group: Group) -> None:
        if group.parent is not None:
            visit(group.parent)
        if group not in done:
            done.append(group)

    for group in groups:
        visit(group)
    return done


def _axis_map(
    namer: Namer, tensor: str, label: Label, result: Assembly
) -> AxisMap | None:
    layout = _Layout(label)
    for part in label.parts:
        flat = part.elements.ids.reshape(-1)
        cells = namer.cell_of[flat]
        following = np.unique(cells[namer.follows[cells]]).tolist()
        if following:
            if not layout.add_product(namer, part):
                # No axis map can say how these move: the caller pins them and tries again.
                for cell in following:
                    result.inexpressible.append(
                        np.flatnonzero(namer.cell_of == cell)
                    )
            continue
        for cell in np.unique(cells[namer.is_group[cells]]).tolist():
            layout.add(part.sites, _component(namer, cell, (), flat))
    return _simplify(layout.axis_map(tensor)) if layout.components else None


@dataclass(frozen=True, eq=False)
class _Placed:
    """A component over factors of sites: ``(site, number of the factor)``, or −1 for a whole site."""

    group: str
    places: list[tuple[int, int]]
    index: torch.Tensor


class _Layout:
    """Sites of one tensor, split further as components need it."""

    def __init__(self, label: Label) -> None:
        self.dims = label.dims
        self.factors: list[tuple[int, ...]] = [(size,) for size in label.sizes]
        self.components: list[_Placed] = []

    def add(self, sites: tuple[int, ...], component: Component) -> None:
        """A component over whole sites."""
        whole = [(site, -1) for site in sites]
        self.components.append(
            _Placed(component.group, whole, component.index)
        )

    def add_product(self, namer: Namer, part: Part) -> bool:
        """Components of a part that several groups move; whether that can be expressed."""
        found = namer.products.split(part.elements.ids)
        if found is None:
            return False
        for site, factors in zip(part.sites, found.sites, strict=True):
            whole = (int(np.prod(factors)),)
            # Another part may have split the site already, and only in the same way.
            if self.factors[site] not in (whole, factors):
                return False
        places = []
        for site, factors in zip(part.sites, found.sites, strict=True):
            self.factors[site] = factors
            places += [(site, k) for k in range(len(factors))]
        for cell, own, index in found.components:
            chosen = [places[k] for k in own]
            positions = torch.from_numpy(index)
            self.components.append(
                _Placed(namer.groups[cell].id, chosen, positions)
            )
        return True

    def axis_map(self, tensor: str) -> AxisMap:
        """The map, with sites numbered row-major; a dimension of size 1 is one site."""
        number: dict[tuple[int, int], int] = {}
        sites: list[tuple[int, ...]] = []
        count = 0
        for dim in self.dims:
            row: list[int] = []
            for site in dim:
                for k, size in enumerate(self.factors[site]):
                    number[site, k] = count + len(row)
                    row.append(size)
            sites.append(tuple(row or [1]))
            count += len(sites[-1])
        components = []
        for placed in self.components:
            own: list[int] = []
            for site, k in placed.places:
                chosen = range(len(self.factors[site])) if k < 0 else [k]
                own += [number[site, factor] for factor in chosen]
            components.append(
                Component(placed.group, tuple(own), placed.index)
            )
        return AxisMap(tensor, tuple(sites), tuple(components))


def _component(
    namer: Namer, cell: int, sites: tuple[int, ...], flat: IntArray
) -> Component:
    """Positions of the members of one group, the copies of each in the order of their colours."""
    positions = np.flatnonzero(namer.cell_of[flat] == cell)
    elements = flat[positions]
    member = namer.member_of[namer.found.colouring.classes[elements]]
    order = np.lexsort(
        (positions, namer.found.colouring.colours[elements], member)
    )
    count = len(namer.found.cells[cell].members)
    index = positions[order].reshape(count, -1)
    index = index[:, np.argsort(index[0], kind="stable")]
    return Component(
        namer.groups[cell].id,
        sites,
        torch.from_numpy(np.ascontiguousarray(index)),
    )


def _simplify(axis_map: AxisMap) -> AxisMap:
    """Drop sites on which nothing depends and join neighbouring sites that always go together.

    A weight of shape (8, 3, 3) whose 8 rows are units keeps the sites ``((8,), (3,), (3,))``; a dimension of sites
    (2, 4) that one component covers becomes one site of 8.
    """
    shape, dims = axis_map.site_shape, axis_map.site_dims
    components = [_without_idle_sites(c, shape) for c in axis_map.components]
    runs: list[list[int]] = []
    for site in range(len(shape)):
        if runs and _go_together(runs[-1][-1], site, dims, components):
            runs[-1].append(site)
        else:
            runs.append([site])
    number: dict[int, int] = {}
    sites: list[list[int]] = [[] for _ in axis_map.sites]
    for i, run in enumerate(runs):
        number.update(dict.fromkeys(run, i))
        sites[dims[run[0]]].append(int(np.prod([shape[site] for site in run])))
    joined = []
    for component in components:
        own = tuple(sorted({number[site] for site in component.sites}))
        joined.append(Component(component.group, own, component.index))
    return AxisMap(axis_map.tensor, tuple(map(tuple, sites)), tuple(joined))


def _go_together(
    before: int,
    site: int,
    dims: Sequence[int],
    components: Sequence[Component],
) -> bool:
    """Whether two neighbouring sites belong to one dimension and to the same components."""
    if dims[before] != dims[site]:
        return False
    return all((before in c.sites) == (site in c.sites) for c in components)


def _without_idle_sites(
    component: Component, shape: tuple[int, ...]
) -> Component:
    """Leave out sites that a component fills evenly: its units move alike at every position there."""
    for site in component.sites:
        index = _without_site(component, shape, site)
        if index is not None:
            others = tuple(other for other in component.sites if other != site)
            smaller = Component(component.group, others, index)
            return _without_idle_sites(smaller, shape)
    return component


def _without_site(
    component: Component, shape: tuple[int, ...], site: int
) -> torch.Tensor | None:
    """The index over the other sites, if every unit has the same positions there at each position of ``site``."""
    sizes = [shape[other] for other in component.sites]
    k = component.sites.index(site)
    if len(sizes) == 1 or component.index.shape[1] % sizes[k]:
        return None
    coordinates = list(np.unravel_index(component.index.numpy(), sizes))
    along = coordinates.pop(k)
    rest = [*sizes[:k], *sizes[k + 1 :]]
    flat = np.ravel_multi_index(coordinates, rest)
    # (member, position along the site, positions over the rest)
    order = np.lexsort((flat, along), axis=1)
    grid = (len(flat), sizes[k], -1)
    flat = np.take_along_axis(flat, order, 1).reshape(grid)
    along = np.take_along_axis(along, order, 1).reshape(grid)
    even = bool((along == np.arange(sizes[k])[:, None]).all())
    alike = bool((flat == flat[:, :1]).all())
    return torch.from_numpy(flat[:, 0].copy()) if even and alike else None
