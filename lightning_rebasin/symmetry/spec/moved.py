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

    Example:
        Of four positions the units of a group of two fill the first two.

        >>> from lightning_rebasin.symmetry.spec.values import Component
        >>> component = Component("h", (0,), torch.tensor([[0], [1]]))
        >>> moved_positions(AxisMap("w", ((4,),), (component,)), 0).tolist()
        [True, True, False, False]
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
        outside = [
            i for i, site in enumerate(component.sites) if site not in own
        ]
        grid = hit.reshape(sizes)
        grid = grid.any(dim=outside) if outside else grid
        # Sites of the dimension that the component does not know are broadcast over.
        view = [
            n if site in component.sites else 1
            for site, n in zip(own, moved.shape, strict=True)
        ]
        moved |= grid.reshape(view)
    return moved.reshape(-1)
