"""Cost matrices of small groups: all terms side by side, one product a visit.

For a group of a few dozen units a matrix product takes less time than the calls around it, so there is nothing to gain
from updating.  The weights of all its terms are packed into one array each: a row for each unit of the reference, a
column for each unit of the source.  The source's rows are gathered afresh wherever a neighbour moved, and the cost is
the product of the two.  NumPy instead of torch, because its calls are shorter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_rebasin.matching.costs.blocks import Block, Flats
from lightning_rebasin.matching.costs.layouts import Layouts
from lightning_rebasin.matching.costs.terms import Term

#: Most members of a packed group, and most numbers in its weights: one mebibyte in float32.
_MEMBERS = 64
_NUMBERS = 1 << 18


class _Part(NamedTuple):
    """One term in the packed arrays: its block, its axes with the group's own first and last, its share of the rows."""

    block: Block
    first: tuple[int, ...]
    last: tuple[int, ...]
    rows: slice
    partner: str | None


class _Moving(NamedTuple):
    """The rows of one bilinear term, ``(partner's members, …)``, as the source has them and in the partner's order."""

    partner: str
    packed: NDArray[Any]
    gathered: NDArray[Any]


@final
class Packing:
    """How the terms of one small group lie side by side; the same for all models of a spec.

    Args:
        terms: The terms, static or bilinear.
        members: Size of the group.
    """

    def __init__(self, terms: Sequence[Term], members: int) -> None:
        self.members = members
        self.parts: list[_Part] = []
        stop = 0
        for term in terms:
            start, stop = stop, stop + term.rank
            first, partner = (term.axis, *term.order[:-1]), term.partner if term.partners else None
            self.parts.append(_Part(term.block, first, term.order, slice(start, stop), partner))
        self.rank = stop

    def fits(self, *models: Layouts) -> bool:
        """Whether the weights are real numbers in the processor's memory: all that this is made for."""
        return all(of.real and of.on_cpu for of in models)

    @classmethod
    def of(cls, terms: Sequence[Term], members: int) -> Packing | None:
        """The packing; ``None`` if the terms are too large, or neither static nor bilinear."""
        large = members > _MEMBERS or sum(math.prod(term.block.lengths) for term in terms) > _NUMBERS
        return None if large or not terms or any(term.kind == "general" for term in terms) else cls(terms, members)


@final
class PackedCost:
    """The cost matrix of one small group.

    Args:
        packing: How its terms are packed.
        reference: Layouts of the reference.
        source: Layouts of the source.
    """

    def __init__(self, packing: Packing, reference: Layouts, source: Layouts) -> None:
        shape, dtype = (packing.rank, packing.members), reference.dtype
        self._units = np.empty(shape[::-1], dtype)
        packed, self._moved = np.empty(shape, dtype), np.empty(shape, dtype)
        self._cost = np.empty((packing.members, packing.members), dtype)
        self._moving: list[_Moving] = []
        for block, first, last, rows, partner in packing.parts:
            a = reference.array(block).transpose(first)
            b = source.array(block).transpose(last)
            self._units[:, rows].reshape(a.shape)[...] = a
            if partner is None:
                self._moved[rows].reshape(b.shape)[...] = b
                continue
            ordered, moved = packed[rows].reshape(b.shape), self._moved[rows].reshape(b.shape)
            ordered[...] = b
            self._moving.append(_Moving(partner, ordered, moved))
        self._made_with: list[Tensor | None] = [None] * len(self._moving)

    def matrix(self, flats: Flats) -> Tensor:
        """The cost under the flat orders ``flats``; valid until the next call."""
        for i, (partner, packed, gathered) in enumerate(self._moving):
            flat = flats[partner]
            if self._made_with[i] is not flat:
                # Any other mode would gather into a buffer first, to keep the output whole if an index were wrong.
                packed.take(flat.numpy(), 0, gathered, "clip")
                self._made_with[i] = flat
        np.matmul(self._units, self._moved, out=self._cost)
        return torch.from_numpy(self._cost)
