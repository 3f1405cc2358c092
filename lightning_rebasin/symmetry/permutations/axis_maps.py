"""The axis map of one tensor: its sites, and for each group the positions of its members.

The label of ``0.weight`` (2×3) in ``Linear(3, 2) → ReLU → Linear(2, 2)`` has the rows ``[0, 1]`` over site 0 and the
columns ``[2, 3, 4]`` over site 1.  Elements 0 and 1 belong to the members 0 and 1 of group ``"0"``, the others to no
group, so the map has the sites ``((2,), (3,))`` and one component: group ``"0"`` over site 0 with the index
``[[0], [1]]``, one row for each member.  ``2.weight`` has the same over site 1.

If several groups move an axis (``shared_axes.py``), its sites are split further.  At the end sites that no component
tells apart are joined again, so that a spec says as little as possible.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from lightning_rebasin.symmetry.permutations.elements import IntArray
from lightning_rebasin.symmetry.permutations.labels import Label, Part
from lightning_rebasin.symmetry.permutations.named_groups import NamedGroups
from lightning_rebasin.symmetry.spec.values import AxisMap, Component

#: A factor of a site of the label: the number of the site, and of the factor in it.
Place = tuple[int, int]
Sites = tuple[int, ...]


def build_axis_map(
    named: NamedGroups,
    tensor: str,
    label: Label,
    inexpressible: list[IntArray],
) -> AxisMap | None:
    """The axis map of a tensor.

    Args:
        named: The groups.
        tensor: Its name.
        label: Its label.
        inexpressible: Elements of a cell that no axis map can express are added here, cell by cell.

    Returns:
        The map, or ``None`` if nothing of the tensor moves.
    """
    layout = _Layout(label)
    for part in label.parts:
        following = named.following_on(part)
        if not following:
            for cell in named.groups_on(part):
                component = component_of(named, cell, part)
                layout.add(part.sites, component)
        elif not layout.add_shared(named, part):
            # No axis map can say how these move: the caller pins them and tries again.
            for cell in following:
                elements = np.flatnonzero(named.cell_of == cell)
                inexpressible.append(elements)
    if not layout.components:
        return None
    return simplify(layout.axis_map(tensor))


def component_of(named: NamedGroups, cell: int, part: Part) -> Component:
    """Positions of the members of one group on a part, the copies of each in the order of their colours."""
    flat = part.elements.ids.reshape(-1)
    here = named.cell_of[flat] == cell
    positions = np.flatnonzero(here)
    elements = flat[positions]
    member = named.members(elements)
    # The k-th copy of every member plays the same role: it has the same colour.
    colours = named.found.colouring.colours[elements]
    order = np.lexsort((positions, colours, member))
    group = named.groups[cell]
    index = positions[order].reshape(group.members, -1)
    # Colours are hashes; copies are told apart by them but ordered by position.
    by_position = np.argsort(index[0], kind="stable")
    index = np.ascontiguousarray(index[:, by_position])
    return Component(group.id, part.sites, torch.from_numpy(index))


@dataclass(frozen=True, eq=False)
class _Placed:
    """A component over whole sites, or over some of their factors."""

    group: str
    sites: Sites
    factors: Sequence[Place]
    index: torch.Tensor


class _Layout:
    """Sites of one tensor, split further as components need it."""

    def __init__(self, label: Label) -> None:
        self.dims = label.dims
        self.factors: list[Sites] = [(size,) for size in label.sizes]
        self.components: list[_Placed] = []

    def add(self, sites: Sites, component: Component) -> None:
        """A component over whole sites."""
        placed = _Placed(component.group, sites, (), component.index)
        self.components.append(placed)

    def add_shared(self, named: NamedGroups, part: Part) -> bool:
        """Components of a part that several groups move; whether that can be expressed."""
        split = named.shared.split(part.elements.ids)
        if split is None:
            return False
        wanted = dict(zip(part.sites, split.sites, strict=True))
        for site, factors in wanted.items():
            whole = (math.prod(factors),)
            # Another part may have split the site already, and only in the same way.
            if self.factors[site] not in (whole, factors):
                return False
        places: list[Place] = []
        for site, factors in wanted.items():
            self.factors[site] = factors
            places += self._factors_of(site)
        for component in split.components:
            group = named.groups[component.cell].id
            own = [places[k] for k in component.sites]
            index = torch.from_numpy(component.index)
            placed = _Placed(group, (), own, index)
            self.components.append(placed)
        return True

    def axis_map(self, tensor: str) -> AxisMap:
        """The map, with sites numbered row-major; a dimension of size 1 is one site."""
        number: dict[Place, int] = {}
        sites: list[Sites] = []
        count = 0
        for dim in self.dims:
            row: list[int] = []
            for site in dim:
                row += self.factors[site]
                for place in self._factors_of(site):
                    number[place] = count
                    count += 1
            # A dimension of size 1 has no site in the label, but a number in the map.
            if not row:
                row = [1]
                count += 1
            sites.append(tuple(row))
        components = []
        for placed in self.components:
            own = [number[place] for place in self._places(placed)]
            component = Component(placed.group, tuple(own), placed.index)
            components.append(component)
        return AxisMap(tensor, tuple(sites), tuple(components))

    def _places(self, placed: _Placed) -> list[Place]:
        """The factors of the sites of a component, whole sites with all that they were split into meanwhile."""
        places = list(placed.factors)
        for site in placed.sites:
            places += self._factors_of(site)
        return places

    def _factors_of(self, site: int) -> list[Place]:
        count = len(self.factors[site])
        return [(site, k) for k in range(count)]


def simplify(axis_map: AxisMap) -> AxisMap:
    """Drop sites on which nothing depends and join neighbouring sites that always go together.

    A weight of shape (8, 3, 3) whose 8 rows are units keeps the sites ``((8,), (3,), (3,))``; a dimension of sites
    (2, 4) that one component covers becomes one site of 8.
    """
    shape, dims = axis_map.site_shape, axis_map.site_dims
    components: list[Component] = []
    for component in axis_map.components:
        smaller = _without_idle_sites(component, shape)
        # Two dimensions that are ordered separately inside each unit say the same thing about the unit twice.
        if not any(_same(smaller, other) for other in components):
            components.append(smaller)
    number: dict[int, int] = {}
    # Each dimension of the tensor keeps its sites, joined or not.
    sites: list[list[int]] = [[] for _ in axis_map.sites]
    for new, run in enumerate(_runs_of_sites(dims, components)):
        number.update(dict.fromkeys(run, new))
        size = math.prod(shape[site] for site in run)
        sites[dims[run[0]]].append(size)
    joined = []
    for component in components:
        own = {number[site] for site in component.sites}
        fewer = tuple(sorted(own))
        joined.append(replace(component, sites=fewer))
    factors = tuple(map(tuple, sites))
    return replace(axis_map, sites=factors, components=tuple(joined))


def _same(a: Component, b: Component) -> bool:
    """Whether two components say the same."""
    if a.group != b.group or a.sites != b.sites:
        return False
    return torch.equal(a.index, b.index)


def _runs_of_sites(
    dims: Sequence[int], components: Sequence[Component]
) -> list[list[int]]:
    """Neighbouring sites of one dimension that belong to the same components, together."""
    runs: list[list[int]] = []
    last: list[int] = []
    for site, dim in enumerate(dims):
        here = [dim]
        for component in components:
            here.append(site in component.sites)
        if here != last:
            runs.append([])
        runs[-1].append(site)
        last = here
    return runs


def _without_idle_sites(component: Component, shape: Sites) -> Component:
    """Leave out sites that a component fills evenly: its units move alike at every position there."""
    for site in component.sites:
        index = _without_site(component, shape, site)
        if index is not None:
            own = list(component.sites)
            own.remove(site)
            smaller = replace(component, sites=tuple(own), index=index)
            # Without this site others may have become idle.
            return _without_idle_sites(smaller, shape)
    return component


def _without_site(
    component: Component, shape: Sites, site: int
) -> torch.Tensor | None:
    """The index over the other sites, if every unit has the same positions there at each position of ``site``.

    On sites of sizes (2, 3) the units with the positions ``[0, 3]``, ``[1, 4]`` and ``[2, 5]`` do not depend on the
    first site: without it they are ``[0]``, ``[1]`` and ``[2]``.
    """
    own = component.sites
    sizes = [shape[other] for other in own]
    k = own.index(site)
    size = shape[site]
    members, copies = component.index.shape
    if len(sizes) == 1 or copies % size:
        return None
    positions = component.index.numpy()
    coordinates = list(np.unravel_index(positions, sizes))
    along = coordinates.pop(k)
    sizes.pop(k)
    flat = np.ravel_multi_index(coordinates, sizes)
    # Member by member: first along the site, then over the rest.
    order = np.lexsort((flat, along), axis=1)
    grid = (members, size, copies // size)
    flat = np.take_along_axis(flat, order, axis=1)
    flat = flat.reshape(grid)
    along = np.take_along_axis(along, order, axis=1)
    along = along.reshape(grid)
    # At each position of the site equally many positions of the rest, ...
    every = np.arange(size).reshape(-1, 1)
    if (along != every).any():
        return None
    # ... and the same ones.
    first = flat[:, :1]
    if (flat != first).any():
        return None
    index = np.ascontiguousarray(flat[:, 0])
    return torch.from_numpy(index)
