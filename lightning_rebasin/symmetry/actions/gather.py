"""Moving the units of a tensor: the part of every transform that only reorders.

An axis map says which flat positions, over some sites of a tensor, belong to which unit.  With a flat order per group,

    ``new[index[m]] = old[index[flat[m]]]``    for every component

so all that is needed is one gather index over the sites of each cluster of components.  A 2×3 weight whose 3 columns
are the units of a group with flat order ``[2, 0, 1]`` has one cluster, over the site of size 3, with gather index
``[2, 0, 1]``: ``new[:, 0] = old[:, 2]``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightning_rebasin.symmetry.spec.values import AxisMap, Component

#: The flat order of a group by its id.
FlatOrders = Callable[[str], Tensor]


def gather_units(
    tensor: Tensor, axis_map: AxisMap, flat: FlatOrders
) -> Tensor:
    """Move the positions of one tensor with their units.

    Args:
        tensor: Any dtype and device, in the shape of ``axis_map``.
        axis_map: Where the units live.
        flat: The flat order of each group, on the CPU.

    Returns:
        A new contiguous tensor.

    Example:
        >>> column = Component("h", (1,), torch.arange(3)[:, None])
        >>> axis_map = AxisMap("w", ((2,), (3,)), (column,))
        >>> gather_units(torch.tensor([[1, 2, 3], [4, 5, 6]]), axis_map, lambda _: torch.tensor([2, 0, 1])).tolist()
        [[3, 1, 2], [6, 4, 5]]
    """
    result = tensor
    for sites, components in axis_map.clusters:
        index = cluster_index(axis_map, sites, components, flat).to(
            tensor.device
        )
        dims = {axis_map.site_dims[site] for site in sites}
        first = min(dims)
        if len(dims) == 1 and len(sites) == len(axis_map.sites[first]):
            # The cluster covers one whole dimension: the fast and usual case.
            result = result.index_select(first, index)
        else:
            result = _gather_over_sites(result, axis_map, sites, index)
    return result.clone() if result is tensor else result.contiguous()


def _gather_over_sites(
    tensor: Tensor, axis_map: AxisMap, sites: tuple[int, ...], index: Tensor
) -> Tensor:
    """Gather over some sites that are not one whole dimension."""
    leading = tuple(range(len(sites)))
    front = tensor.reshape(axis_map.site_shape).movedim(sites, leading)
    gathered = front.reshape(len(index), -1).index_select(0, index)
    return (
        gathered.reshape(front.shape)
        .movedim(leading, sites)
        .reshape(tensor.shape)
    )


def cluster_index(
    axis_map: AxisMap,
    sites: tuple[int, ...],
    components: Sequence[Component],
    flat: FlatOrders,
) -> Tensor:
    """Gather index over the sites of one cluster: ``new.flat[x] = old.flat[index[x]]``.

    Args:
        axis_map: The map that the cluster belongs to.
        sites: Its sites, ascending.
        components: Its components.
        flat: The flat order of each group.

    Returns:
        LongTensor ``(product of the site sizes,)``.
    """
    by_sites: dict[tuple[int, ...], list[Component]] = {}
    for component in components:
        by_sites.setdefault(component.sites, []).append(component)
    if len(by_sites) == 1:
        return _index_over(axis_map, sites, by_sites[sites], flat)[0]

    # Components over overlapping sites (the two axes of a grouped convolution): each says where the coordinates along
    # its own sites come from, at every place of the whole cluster.
    shape = tuple(axis_map.site_shape[site] for site in sites)
    coordinates: dict[int, Tensor] = {}
    for position, site in enumerate(sites):
        view = [-1 if i == position else 1 for i in range(len(sites))]
        coordinates[site] = torch.arange(shape[position]).reshape(view)
    for own, members in by_sites.items():
        index, named = _index_over(axis_map, own, members, flat)
        sizes = tuple(axis_map.site_shape[site] for site in own)
        view = [
            axis_map.site_shape[site] if site in own else 1 for site in sites
        ]
        for site, coordinate in zip(
            own, torch.unravel_index(index, sizes), strict=True
        ):
            # Positions that these components do not name are left to the others.
            found = torch.where(
                named.reshape(view),
                coordinate.reshape(view),
                coordinates[site],
            )
            coordinates[site] = found
    result = torch.zeros((), dtype=torch.long)
    for site, size in zip(sites, shape, strict=True):
        result = result * size + coordinates[site]
    return result.expand(shape).reshape(-1)


def _index_over(
    axis_map: AxisMap,
    sites: tuple[int, ...],
    components: Sequence[Component],
    flat: FlatOrders,
) -> tuple[Tensor, Tensor]:
    """Gather index of components that share exactly these sites, and which positions they name."""
    count = math.prod(axis_map.site_shape[site] for site in sites)
    index = torch.arange(count)
    named = torch.zeros(count, dtype=torch.bool)
    for component in components:
        target = component.index.reshape(-1)
        index[target] = component.index[flat(component.group)].reshape(-1)
        named[target] = True
    return index, named
