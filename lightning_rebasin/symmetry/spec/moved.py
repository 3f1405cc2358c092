"""Which positions of a tensor some group moves."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_rebasin.symmetry.spec.values import AxisMap, Component


def moved_positions(axis_map: AxisMap, dim: int) -> Tensor:
    """Boolean ``(size,)``: which positions of one dimension move with some group.

    Args:
        axis_map: Where the units live in the tensor.
        dim: A dimension of the tensor.

    Example:
        Of four positions the units of a group of two fill the first two.

        >>> from lightning_rebasin.symmetry.spec.values import Component
        >>> component = Component("h", (0,), torch.tensor([[0], [1]]))
        >>> moved_positions(AxisMap("w", ((4,),), (component,)), 0).tolist()
        [True, True, False, False]
    """
    factors = axis_map.sites[dim]
    first = sum(len(sites) for sites in axis_map.sites[:dim])
    own = range(first, first + len(factors))
    moved = torch.zeros(factors, dtype=torch.bool)
    for component in axis_map.components:
        sites = component.sites
        if set(sites).isdisjoint(own):
            continue
        grid = _hit(axis_map, component)
        # A position counts as moved if any place along the other dimensions is.
        outside = [i for i, site in enumerate(sites) if site not in own]
        if outside:
            grid = grid.any(dim=outside)
        # Sites of the dimension that the component does not know are broadcast over.
        view = []
        for site, size in zip(own, factors, strict=True):
            view.append(size if site in sites else 1)
        moved |= grid.reshape(view)
    return moved.reshape(-1)


def _hit(axis_map: AxisMap, component: Component) -> Tensor:
    """Boolean, over the sites of the component: which positions some unit has."""
    sizes = [axis_map.site_shape[site] for site in component.sites]
    hit = torch.zeros(math.prod(sizes), dtype=torch.bool)
    hit[component.index.flatten()] = True
    return hit.reshape(sizes)


def count_moved(axis_map: AxisMap, dim: int) -> int:
    """How many positions of one dimension move."""
    return int(moved_positions(axis_map, dim).sum())
