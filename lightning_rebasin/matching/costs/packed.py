"""Cost matrices of small groups: all terms side by side, one product a visit.

For a group of a few dozen units a matrix product takes little more time than the calls around it.  So the weights of
all its terms are packed into one array for each model, with a column for each unit.  The source's rows are gathered
afresh wherever a neighbour moved, and the cost is the product of the two; only where that saves more than the calls for
it take, the product is of the rows that changed.  NumPy instead of torch, because its calls are shorter.
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
#: Multiplications that take as long as the calls to update one term.
_CALLS = 1 << 19
#: Updates may add up to this many times the rank of the whole matrix before it is built anew.
_MOST_DRIFT = 4.0


class _Part(NamedTuple):
    """One term in the packed arrays: its block, the block's axes with the group's own last, its share of the rows."""

    block: Block
    order: tuple[int, ...]
    rows: slice
    partner: str | None


class _Moving(NamedTuple):
    """The rows of one bilinear term, ``(partner's members, …)``: reference, source, and that in the partner's order."""

    partner: str
    units: NDArray[Any]
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
        # A group of 4 units with a bias (4), a weight (4, 3) and a reader (2, 4) has 1 + 3 + 2 rows of 4 columns.
        #: Biases and the like, one row each: the first rows.
        self.vectors = tuple(
            term.block for term in terms if term.block.lengths == (members,)
        )
        self.parts: list[_Part] = []
        stop = len(self.vectors)
        for term in terms:
            # Whole vectors are copied in one call; everything else knows where its rows begin and end.
            if term.block not in self.vectors:
                start, stop = stop, stop + term.rank
                partner = term.partner if term.partners else None
                self.parts.append(
                    _Part(term.block, term.order, slice(start, stop), partner)
                )
        self.rank = stop

    def fits(self, *models: Layouts) -> bool:
        """Whether the weights are real numbers in the processor's memory: all that this is made for."""
        return all(of.real and of.on_cpu for of in models)

    @classmethod
    def of(cls, terms: Sequence[Term], members: int) -> Packing | None:
        """The packing; ``None`` if the terms are too large, or neither static nor bilinear."""
        large = (
            members > _MEMBERS
            or sum(math.prod(term.block.lengths) for term in terms) > _NUMBERS
        )
        return (
            None
            if large
            or not terms
            or any(term.kind == "general" for term in terms)
            else cls(terms, members)
        )


@final
class PackedCost:
    """The cost matrix of one small group.

    Args:
        packing: How its terms are packed.
        reference: Layouts of the reference.
        source: Layouts of the source.
    """

    def __init__(
        self, packing: Packing, reference: Layouts, source: Layouts
    ) -> None:
        shape, dtype = (packing.rank, packing.members), reference.dtype
        self._units, self._moved = (
            np.empty(shape, dtype),
            np.empty(shape, dtype),
        )
        packed = np.empty(shape, dtype)
        self._cost = np.empty((packing.members, packing.members), dtype)
        if packing.vectors:
            for of, packs in ((reference, self._units), (source, self._moved)):
                np.concatenate(
                    [of.array(v) for v in packing.vectors],
                    out=packs[: len(packing.vectors)].reshape(-1),
                )
        self._moving: list[_Moving] = []
        for block, order, rows, partner in packing.parts:
            a, b = (
                of.array(block).transpose(order) for of in (reference, source)
            )
            units = self._units[rows].reshape(a.shape)
            units[...] = a
            # Without a partner the rows never change: they are written here once and left alone.
            if partner is None:
                self._moved[rows].reshape(b.shape)[...] = b
                continue
            ordered, moved = (
                packed[rows].reshape(b.shape),
                self._moved[rows].reshape(b.shape),
            )
            ordered[...] = b
            self._moving.append(_Moving(partner, units, ordered, moved))
        self._made_with: list[Tensor] = []
        self._drift = 0

    def matrix(self, flats: Flats) -> Tensor:
        """The cost under the flat orders ``flats``; valid until the next call."""
        orders = [flats[part.partner] for part in self._moving]
        if not (self._made_with and self._updated(orders)):
            for i, (part, order) in enumerate(
                zip(self._moving, orders, strict=True)
            ):
                if not self._made_with or self._made_with[i] is not order:
                    # Any other mode would gather into a buffer first, to keep the output whole if an index were wrong.
                    part.packed.take(order.numpy(), 0, part.gathered, "clip")
            np.matmul(self._units.T, self._moved, out=self._cost)
            self._drift = 0
        self._made_with = orders
        return torch.from_numpy(self._cost)

    def _updated(self, orders: list[Tensor]) -> bool:
        """Bring the cost up to date by the rows that changed; ``False`` if a whole product takes less time."""
        members, rank, changes, changed = (
            len(self._cost),
            len(self._units),
            [],
            0,
        )
        for part, before, order in zip(
            self._moving, self._made_with, orders, strict=True
        ):
            if before is not order:
                now = order.numpy()
                (where,) = (before.numpy() != now).nonzero()
                changes.append((part, where, now[where]))
                changed += len(where) * (part.units[0].size // members)
        # In half of the descents only a few units of a neighbour move, and most rows stand.
        self._drift += changed
        # Every update adds rounding errors of its own, so they may not pile up for ever.
        saved = members * members * (rank - 1.5 * changed)
        if saved < _CALLS * len(changes) or self._drift > _MOST_DRIFT * rank:
            return False
        for part, where, order in changes:
            change = part.packed[order]
            part.gathered[where], change = (
                change,
                change - part.gathered[where],
            )
            self._cost += part.units[where].reshape(
                -1, members
            ).T @ change.reshape(-1, members)
        return True
