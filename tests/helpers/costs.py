"""Pairs of random models, the cache of their cost matrices, and soft costs by their definition."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from helpers.planted import (
    GroupedResidual,
    Recurrent,
    Transformer,
    small_vgg,
)
from helpers.specs import blocks_spec, grouped_spec, nested_spec
from lightning_rebasin import infer_spec
from lightning_rebasin.matching.costs.cache import CostCache, TermTable
from lightning_rebasin.matching.costs.layouts import Layouts
from lightning_rebasin.symmetry.actions.permutation import Permutation
from lightning_rebasin.symmetry.spec.spec import PermutationSpec

State = dict[str, Tensor]
Axes = Sequence[str | None]
CPU = torch.device("cpu")
F64 = torch.float64

#: Specs with every kind of axis.
SPECS: dict[str, Callable[[], PermutationSpec]] = {
    "nested": nested_spec,
    "grouped": grouped_spec,
    "flatten block": blocks_spec,
    "vgg": lambda: infer_spec(small_vgg().eval(), torch.randn(2, 3, 8, 8)),
    "transformer": lambda: infer_spec(
        Transformer(), torch.randint(0, 20, (2, 8))
    ),
    "grouped convolution": lambda: infer_spec(
        GroupedResidual(), torch.randn(2, 3, 8, 8)
    ),
    "lstm": lambda: infer_spec(Recurrent(), torch.randn(2, 4, 10)),
}


def random_pair(
    shapes: Mapping[str, Sequence[int]],
    dtype: torch.dtype = F64,
    seed: int = 0,
) -> tuple[State, State]:
    """Two models of standard normal numbers, drawn in float64 only if that is what they hold."""
    generator = torch.Generator().manual_seed(seed)
    drawn = F64 if dtype is F64 else torch.float32
    states: tuple[State, State] = ({}, {})
    for state in states:
        for name, shape in shapes.items():
            numbers = torch.randn(
                tuple(shape), generator=generator, dtype=drawn
            )
            state[name] = numbers.to(dtype)
    return states


def layouts(
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    dtype: torch.dtype = F64,
    *,
    keep: bool = True,
) -> tuple[Layouts, Layouts]:
    """The layouts of a reference and a source on the CPU."""
    return (
        Layouts(a, dtype, CPU, keep=keep),
        Layouts(b, dtype, CPU, keep=keep),
    )


def cost_cache(
    spec: PermutationSpec,
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    dtype: torch.dtype = F64,
    *,
    keep: bool = True,
) -> CostCache:
    """The cost matrices of reference ``a`` and source ``b``."""
    models = layouts(a, b, dtype, keep=keep)
    return CostCache(TermTable.of(spec), *models, dtype, CPU)


def flats_of(permutation: Permutation) -> dict[str, Tensor]:
    """The flat order of every group."""
    return {group: permutation.flat(group) for group in permutation.orders}


def roll_some(flat: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """A new order in which ``count`` random places have passed their units on in a ring."""
    where = torch.randperm(len(flat), generator=generator)[:count]
    moved = flat.clone()
    moved[where] = moved[where.roll(1)]
    return moved


def random_soft(
    members: int, generator: torch.Generator, dtype: torch.dtype = F64
) -> Tensor:
    """A positive matrix whose columns sum to one: a soft order that is no permutation."""
    numbers = torch.rand(members, members, generator=generator, dtype=dtype)
    return numbers.softmax(0)


def soft_cost(
    table: Mapping[str, Axes],
    group: str,
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    soft: Mapping[str, Tensor],
) -> Tensor:
    """The cost of ``group`` by its definition: every other axis of B mixed, then inner products of the units."""
    members = len(soft[group])
    total = torch.zeros(members, members, dtype=soft[group].dtype)
    for name, axes in table.items():
        if group not in axes:
            continue
        own, mixed = list(axes).index(group), b[name]
        for axis, other in enumerate(axes):
            if other and axis != own:
                mixed = torch.tensordot(
                    soft[other], mixed, ([1], [axis])
                ).movedim(0, axis)
        total += torch.tensordot(
            a[name].movedim(own, 0), mixed.movedim(own, -1), len(axes) - 1
        )
    return total
