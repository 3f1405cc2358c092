"""Which positions of a tensor some group moves."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_rebasin.symmetry.spec.values import AxisMap


def moved_positions(axis_map: AxisMap, dim: int) -> Tensor:
    """Boolean ``(size,)``: which positions of one dimension move with some group.

    Args:
        axis_map: Where the units live in the tensor.
        dim: A dimension of the tensor.
    """
    first = sum(len(factors) for factors in axis_map.sites[:dim])
    own = list(range(first, first + len(axis_map.sites[dim])))
    moved = torch.zeros(axis_map.sites[dim], dtype=torch.bool)
    for component in axis_map.components:
        if not set(component.sites) & set(own):
            continue
        sizes = [axis_map.site_shape[site] for site in component.sites]
        hit = torch.zeros(math.prod(sizes), dtype=torch.bool)
        hit[component.index.flatten()] = True
        outside = [i for i, site in enumerate(component.sites) if site not in own]
        grid = hit.reshape(sizes)
        grid = grid.any(dim=outside) if outside else grid
        moved |= grid.reshape(
            [
                axis_map.site_shape[site] if site in component.sites else 1
                for site in own
            ]
        )
    return moved.reshape(-1)
