"""Which copy of its units a value holds at each place.

A packed projection holds the units of a head several times: as queries, and as keys.  An element acts on the two in
different ways, so a walk must know which is which.  Every copy in a tensor of the state is a *role*, a number; the
roles of a value are one number if all its units are the same copy, else a tensor with one entry for each place, of size
1 along dimensions where nothing changes, and −1 where no units stand.

The weight of a fused projection (6 rows: two queries, two keys, two others) has the roles ``[[0], [0], [1], [1], [-1],
[-1]]`` for the group of the two query-key units.  Its product with an input has them along the last dimension, and
after ``view(batch, time, 3, 2)`` and ``select`` each piece has one role.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_rebasin.symmetry.continuous.operations import (
    Limit,
    Step,
    names,
)
from lightning_rebasin.symmetry.spec.values import AxisMap, Component
from lightning_rebasin.symmetry.trace.tape import Node, Ref

#: One role everywhere, or the role of each place.
Roles = int | Tensor
NOTHING = -1
#: Every number stays in its place.
STAYING = names(
    "alias detach contiguous clone _to_copy to type_as lift_fresh lift copy neg positive native_dropout dropout"
)
#: Numbers change their places by the shape alone: what happens to numbers happens to roles.
MOVING = names(
    "t transpose permute unsqueeze squeeze expand broadcast_to repeat movedim unflatten flatten",
    "select slice split split_with_sizes chunk unbind narrow diagonal flip roll repeat_interleave",
    "unsafe_split unsafe_chunk unsafe_split_with_sizes",
)
RESHAPING = names("view reshape _unsafe_view _reshape_alias")
MOVES = MOVING | RESHAPING | STAYING


def roles_of_weight(
    axis_map: AxisMap, group: str, number: Callable[[int], int]
) -> Roles:
    """The roles of the units of a group in a tensor of the state.

    Args:
        axis_map: Where units stand in it.
        group: The group.
        number: Gives every copy, counted from 0, the number of its role.
    """
    own = [c for c in axis_map.components if c.group == group]
    copies = sum(c.index.shape[1] for c in own)
    if copies <= 1:
        return number(0)
    dims = set(axis_map.dims_of(group))
    sizes = []
    for size, dim in zip(axis_map.site_shape, axis_map.site_dims, strict=True):
        sizes.append(size if dim in dims else 1)
    roles = torch.full(sizes, NOTHING)
    first = 0
    for component in own:
        count = component.index.shape[1]
        numbers = [number(copy) for copy in range(first, first + count)]
        placed = _placed(axis_map, component, numbers)
        roles = torch.where(placed >= 0, placed, roles)
        first += count
    shape = [
        size if dim in dims else 1 for dim, size in enumerate(axis_map.shape)
    ]
    return simplified(roles.reshape(shape))


def _placed(
    axis_map: AxisMap, component: Component, numbers: Sequence[int]
) -> Tensor:
    """One component's roles over all sites, of size 1 where it does not lie."""
    over = [axis_map.site_shape[site] for site in component.sites]
    flat = torch.full((math.prod(over),), NOTHING)
    flat[component.index] = torch.tensor(numbers)
    shape = [1] * len(axis_map.site_shape)
    for site, size in zip(component.sites, over, strict=True):
        shape[site] = size
    return flat.reshape(shape)


def simplified(roles: Tensor) -> Roles:
    """One number where there is one role; size 1 along dimensions along which nothing changes."""
    there = roles[roles >= 0]
    if there.numel() and bool((there == there[0]).all()):
        return int(there[0])
    return compressed(roles)


def compressed(places: Tensor) -> Tensor:
    """The same with size 1 along dimensions along which nothing changes."""
    for dim in range(places.ndim):
        if places.shape[dim] < 2:
            continue
        first = places.narrow(dim, 0, 1)
        if bool((places == first).all()):
            places = first
    return places


def pairs(first: Roles, second: Roles) -> Iterator[tuple[int, int]]:
    """Which roles stand in the same places."""
    if isinstance(first, int) and isinstance(second, int):
        yield first, second
        return
    a, b = torch.as_tensor(first), torch.as_tensor(second)
    shape = np.broadcast_shapes(a.shape, b.shape)
    both = torch.stack([a.expand(shape), b.expand(shape)], -1).reshape(-1, 2)
    met: list[list[int]] = both[(both >= 0).all(1)].tolist()
    yield from dict.fromkeys((one, other) for one, other in met)


def followed(step: Step, value: int, roles: Roles) -> dict[int, Roles]:
    """The roles of every result of an operation that moves numbers about.

    Args:
        step: The operation.
        value: Its operand.
        roles: The operand's roles.

    Raises:
        Limit: The places of several roles cannot be followed through it.
    """
    if isinstance(roles, int) or step.op in STAYING:
        return dict.fromkeys(step.results, roles)
    shape = step.value(value).shape
    try:
        moved = moved_places(step.node, value, roles.expand(shape))
    except (RuntimeError, TypeError, NotImplementedError) as error:
        raise Limit(
            f"its copies cannot be told apart at {step.name}"
        ) from error
    found = dict(zip(step.node.outputs, moved, strict=True))
    return {number: simplified(found[number]) for number in step.results}


def moved_places(node: Node, value: int, places: Tensor) -> list[Tensor]:
    """Run an operation that moves numbers about on a tensor that says something about each place.

    Args:
        node: The operation.
        value: Its operand.
        places: What is said, in the operand's full shape.

    Raises:
        NotImplementedError: It does more than move numbers about.
    """
    arguments = node.arguments
    if node.op in STAYING:
        return [places] * len(node.outputs)
    if node.op in RESHAPING and "size" in arguments:
        return [places.reshape(arguments["size"])]
    if node.op not in MOVING:
        raise NotImplementedError(node.op)
    given: dict[str, Any] = {}
    for name, argument in arguments.items():
        is_operand = isinstance(argument, Ref) and argument.value == value
        given[name] = places if is_operand else argument
    function = getattr(torch.ops.aten, node.op.removeprefix("aten."))
    result = function(**given)
    return list(result) if isinstance(result, (list, tuple)) else [result]


def beside(parts: Sequence[tuple[Roles, Sequence[int]]], dim: int) -> Roles:
    """The roles of a concatenation.

    Args:
        parts: The roles and the shape of each piece; ``NOTHING`` is a role for pieces without units.
        dim: Along which dimension.
    """
    pieces = []
    for roles, shape in parts:
        sizes = [1] * len(shape)
        sizes[dim] = shape[dim]
        given = torch.as_tensor(roles)
        if given.ndim:
            sizes = [
                max(pair) for pair in zip(given.shape, sizes, strict=True)
            ]
        pieces.append(given.expand(sizes))
    widest = [
        max(sizes) for sizes in zip(*(p.shape for p in pieces), strict=True)
    ]
    full = []
    for piece in pieces:
        sizes = list(widest)
        sizes[dim] = piece.shape[dim]
        full.append(piece.expand(sizes))
    return simplified(torch.cat(full, dim))
