"""From cells to a :class:`~lightning_rebasin.symmetry.spec.spec.PermutationSpec`: names, indices, reasons."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from lightning_rebasin.symmetry.permutations.cells import Solution, moving
from lightning_rebasin.symmetry.permutations.elements import IntArray, Table
from lightning_rebasin.symmetry.permutations.labels import Label, Part
from lightning_rebasin.symmetry.permutations.reasons import Reasons, pins_of
from lightning_rebasin.symmetry.permutations.rules.base import Contraction
from lightning_rebasin.symmetry.permutations.shared_axes import Products
from lightning_rebasin.symmetry.spec.values import (
    ActivationAddress,
    AxisMap,
    Component,
    Group,
    Pin,
)


@dataclass
class Assembly:
    """Groups and maps of a solution.

    ``inexpressible`` holds elements of cells that follow several parents in a way that no axis map can say.
    """

    groups: dict[str, Group] = field(default_factory=dict)
    maps: dict[str, AxisMap] = field(default_factory=dict)
    pins: list[Pin] = field(default_factory=list)
    inexpressible: list[IntArray] = field(default_factory=list)
    activations: dict[str, list[ActivationAddress]] = field(default_factory=dict)


class Namer:
    """Finds a group and a member for every element.

    Args:
        solution: The cells.
        states: Labels of the state; groups are named after the first tensor on which they act.
    """

    def __init__(self, solution: Solution, states: Mapping[str, Label]) -> None:
        colouring = solution.colouring
        self.solution = solution
        self.cell_of = colouring.cells[colouring.classes]
        self.member_of = np.full(len(colouring.cells), -1, dtype=np.int64)
        for cell in solution.cells.values():
            if cell.kind == "group":
                self.member_of[cell.members] = np.arange(len(cell.members))
        self.is_group = np.zeros(int(colouring.cells.max(initial=0)) + 1, dtype=bool)
        self.follows = self.is_group.copy()
        for cell in solution.cells.values():
            (self.is_group if cell.kind == "group" else self.follows)[cell.number] = (
                True
            )
        self.products = Products(solution)
        self.groups = self._name(states)

    def _name(self, states: Mapping[str, Label]) -> dict[int, Group]:
        """Groups by cell, in the order of the first tensor dimension on which they act, parents first."""
        found: dict[int, Group] = {}
        taken: set[str] = set()
        for tensor, label in states.items():
            for part in label.parts:
                flat = part.elements.ids.reshape(-1)
                cells = self.cell_of[flat]
                order = np.unique(cells[self.is_group[cells]], return_index=True)
                for cell in order[0][np.argsort(order[1])]:
                    self._add(int(cell), tensor, found, taken)
                # A group may act only through units that follow it (the heads of a fused projection).
                for cell in np.unique(cells[self.follows[cells]]).tolist():
                    for group in self.products.groups_of(cell):
                        self._add(group, tensor, found, taken)
        return found

    def _add(
        self, number: int, tensor: str, found: dict[int, Group], taken: set[str]
    ) -> Group:
        if number in found:
            return found[number]
        cell = self.solution.cells[number]
        parent = (
            self._add(cell.parents[0], tensor, found, taken) if cell.parents else None
        )
        base = tensor.rpartition(".")[0] or tensor
        name, count = base, 1
        while name in taken:
            count += 1
            name = f"{base}#{count}"
        taken.add(name)
        found[number] = Group(name, cell.size, parent)
        return found[number]


def assemble(
    solution: Solution,
    states: Mapping[str, Label],
    tables: list[Table],
    contractions: Sequence[Contraction],
) -> Assembly:
    """Make groups, axis maps and pins.

    Args:
        solution: The cells.
        states: Labels of parameters and buffers.
        tables: The constraints, for the reasons.
        contractions: Where units can be observed.
    """
    namer = Namer(solution, states)
    result = Assembly()
    result.groups = {g.id: g for g in _parents_first(namer.groups.values())}
    why = Reasons(solution, tables)
    moves = moving(solution)
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
    """Turn an operand into activation sites of the groups that are contracted there.

    An operand whose other dimensions are permuted too is left out: its samples would not correspond.
    """
    label = seen.label
    for part in label.parts:
        cells = namer.cell_of[part.elements.ids]
        others = [
            p
            for p in label.parts
            if p is not part and namer.is_group[namer.cell_of[p.elements.ids]].any()
        ]
        if not seen.contracted.intersection(part.sites) or others:
            continue
        sites, number = _run_time_sites(label, set(part.sites))
        for cell in np.unique(cells[namer.is_group[cells]]):
            if np.count_nonzero(cells == cell) % len(
                namer.solution.cells[int(cell)].members
            ):
                continue
            component = _component(
                namer,
                int(cell),
                tuple(number[s] for s in part.sites),
                part.elements.ids.reshape(-1),
            )
            site = ActivationAddress(
                seen.ordinal, seen.op, seen.argument, sites, component
            )
            result.activations.setdefault(component.group, []).append(site)


def _run_time_sites(
    label: Label, own: set[int]
) -> tuple[tuple[tuple[int, ...], ...], dict[int, int]]:
    """Sites of an operand, those that carry no units of unknown size (one in each dimension)."""
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
        following = np.unique(cells[namer.follows[cells]])
        if len(following):
            if not layout.add_product(namer, part):
                result.inexpressible += [
                    np.flatnonzero(namer.cell_of == cell) for cell in following
                ]
            continue
        for cell in np.unique(cells[namer.is_group[cells]]):
            layout.add(part.sites, _component(namer, int(cell), (), flat))
    return _simplify(layout.axis_map(tensor)) if layout.components else None


class _Layout:
    """Sites of one tensor, split further as components need it."""

    def __init__(self, label: Label) -> None:
        self.dims = label.dims
        self.factors: list[tuple[int, ...]] = [(size,) for size in label.sizes]
        self.components: list[tuple[str, list[tuple[int, int]], torch.Tensor]] = []

    def add(self, sites: tuple[int, ...], component: Component) -> None:
        """A component over whole sites."""
        self.components.append(
            (component.group, [(s, -1) for s in sites], component.index)
        )

    def add_product(self, namer: Namer, part: Part) -> bool:
        """Components of a part that several groups move; whether that can be expressed."""
        found = namer.products.split(part.elements.ids)
        if found is None:
            return False
        for site, factors in zip(part.sites, found.sites, strict=True):
            if self.factors[site] not in ((int(np.prod(factors)),), factors):
                return False
        for site, factors in zip(part.sites, found.sites, strict=True):
            self.factors[site] = factors
        places = [
            (site, k)
            for site, factors in zip(part.sites, found.sites, strict=True)
            for k in range(len(factors))
        ]
        for cell, own, index in found.components:
            self.components.append(
                (
                    namer.groups[cell].id,
                    [places[k] for k in own],
                    torch.from_numpy(index),
                )
            )
        return True

    def axis_map(self, tensor: str) -> AxisMap:
        """The map, with sites numbered row-major; a dimension of size 1 is one site."""
        number: dict[tuple[int, int], int] = {}
        sites = []
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
        for group, places, index in self.components:
            own: list[int] = []
            for site, k in places:
                own += (
                    [number[site, j] for j in range(len(self.factors[site]))]
                    if k < 0
                    else [number[site, k]]
                )
            components.append(Component(group, tuple(own), index))
        return AxisMap(tensor, tuple(sites), tuple(components))


def _component(
    namer: Namer, cell: int, sites: tuple[int, ...], flat: IntArray
) -> Component:
    """Positions of the members of one group, the copies of each in the order of their colours."""
    positions = np.flatnonzero(namer.cell_of[flat] == cell)
    elements = flat[positions]
    member = namer.member_of[namer.solution.colouring.classes[elements]]
    order = np.lexsort((positions, namer.solution.colouring.colours[elements], member))
    count = len(namer.solution.cells[cell].members)
    index = positions[order].reshape(count, -1)
    index = index[:, np.argsort(index[0], kind="stable")]
    return Component(
        namer.groups[cell].id, sites, torch.from_numpy(np.ascontiguousarray(index))
    )


def _simplify(axis_map: AxisMap) -> AxisMap:
    """Drop sites on which nothing depends and join neighbouring sites that always go together."""
    shape = axis_map.site_shape
    components = [_without_idle_sites(c, shape) for c in axis_map.components]
    dims = axis_map.site_dims
    glued: list[list[int]] = []
    for site in range(len(shape)):
        together = (
            bool(glued)
            and dims[glued[-1][-1]] == dims[site]
            and all((site in c.sites) == (glued[-1][-1] in c.sites) for c in components)
        )
        if together:
            glued[-1].append(site)
        else:
            glued.append([site])
    number = {site: i for i, run in enumerate(glued) for site in run}
    sites: list[list[int]] = [[] for _ in axis_map.sites]
    for run in glued:
        sites[dims[run[0]]].append(int(np.prod([shape[s] for s in run])))
    joined = [
        Component(c.group, tuple(sorted({number[s] for s in c.sites})), c.index)
        for c in components
    ]
    return AxisMap(axis_map.tensor, tuple(tuple(s) for s in sites), tuple(joined))


def _without_idle_sites(component: Component, shape: tuple[int, ...]) -> Component:
    """Leave out sites that a component fills evenly: its units move alike at every position there."""
    for site in component.sites:
        if len(component.sites) == 1:
            break
        sizes = [shape[s] for s in component.sites]
        k = component.sites.index(site)
        if component.index.shape[1] % sizes[k]:
            continue
        coordinates = np.unravel_index(component.index.numpy(), sizes)
        rest = [s for i, s in enumerate(sizes) if i != k]
        flat = np.ravel_multi_index(
            [c for i, c in enumerate(coordinates) if i != k], rest
        )
        order = np.lexsort((flat, coordinates[k]), axis=1)
        flat = np.take_along_axis(flat, order, 1).reshape(len(flat), sizes[k], -1)
        even = (
            np.take_along_axis(coordinates[k], order, 1).reshape(flat.shape)
            == np.arange(sizes[k])[:, None]
        )
        if bool(even.all()) and bool((flat == flat[:, :1]).all()):
            others = tuple(s for s in component.sites if s != site)
            return _without_idle_sites(
                Component(component.group, others, torch.from_numpy(flat[:, 0].copy())),
                shape,
            )
    return component
