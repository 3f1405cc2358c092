"""Which units of a projection each coordinate of a query or a key is made of.

Rotary positions turn pairs of coordinates, so after them a coordinate is a combination of the two units of its pair;
how the pairs are chosen (halves, neighbours, complex numbers, a part of the head only) is up to the network.  Here the
columns of a projection's result are followed to the product of queries and keys: every operation in between is run on
*origins*, which say of each place from which columns its number comes.  Factors do not matter for that, so a product
with anything that does not come from the projection changes nothing.

For a head of four units and halves, the coordinates come from the columns (0, 2), (1, 3), (0, 2), (1, 3): two pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from lightning_rebasin.symmetry.continuous import operations as ops
from lightning_rebasin.symmetry.continuous.operations import Limit
from lightning_rebasin.symmetry.continuous.projections import (
    Projections,
    Rows,
    value_of,
)
from lightning_rebasin.symmetry.continuous.roles import (
    MOVES,
    compressed,
    moved_places,
)
from lightning_rebasin.symmetry.trace.tape import Node, references


@final
@dataclass(frozen=True)
class Origins:
    """From which columns the numbers of a value come.

    Args:
        low: The first column for each place, of size 1 along dimensions where nothing changes.
        high: The last column.
        code: The sum of random numbers of all columns: it tells whether there are others.
        rows: The tensors that make the columns.
    """

    low: Tensor
    high: Tensor
    code: Tensor
    rows: tuple[Rows, ...]

    @property
    def is_plain(self) -> bool:
        """Whether every number comes from one column."""
        return torch.equal(self.low, self.high)

    def changed(self, change: Callable[[Tensor], Tensor]) -> Origins:
        """The same after a change of places."""
        return _made(
            change(self.low), change(self.high), change(self.code), self.rows
        )


def _made(
    low: Tensor, high: Tensor, code: Tensor, rows: tuple[Rows, ...]
) -> Origins:
    return Origins(compressed(low), compressed(high), compressed(code), rows)


def codes(count: int) -> Tensor:
    """A random number for each column; sums of two are told from sums of others by them."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, generator=generator, dtype=torch.float64)


@final
class Follower:
    """Follows the columns of projections through one tape.

    Args:
        projections: The projections of the tape.
    """

    def __init__(self, projections: Projections) -> None:
        self.projections = projections
        self._tape = projections.tape
        self._found: dict[int, Origins | None] = {}

    def of(self, value: int) -> Origins | None:
        """The origins of a value; ``None`` if it does not come from a projection.

        Raises:
            Limit: An operation in between is not linear, or mixes columns in a way that cannot be followed.
        """
        if value not in self._found:
            node = self.projections.makers.get(value)
            self._found[value] = None
            if node is not None:
                for output, found in self._through(node).items():
                    self._found[output] = found
        return self._found[value]

    def know(self, value: int, origins: Origins) -> None:
        """Say what an operation passes on that is no projection and does not only move numbers."""
        self._found[value] = origins

    def _through(self, node: Node) -> dict[int, Origins | None]:
        """The origins of all results of an operation."""
        rows = self.projections.rows_of(node)
        if rows is not None:
            return {node.outputs[0]: self._begun(node, rows)}
        if node.op in ops.CONTRACTED:
            return dict.fromkeys(node.outputs)
        known = {}
        for ref in references(node.arguments):
            found = self.of(ref.value)
            if found is not None:
                known[ref.value] = found
        if not known:
            return dict.fromkeys(node.outputs)
        return dict(self._changed(node, known))

    def _begun(self, node: Node, rows: tuple[Rows, ...]) -> Origins:
        """What comes out of a projection: every column from itself."""
        shape = self._tape.values[node.outputs[0]].shape
        sizes = [1] * (len(shape) - 1) + [shape[-1]]
        columns = torch.arange(shape[-1]).reshape(sizes)
        code = codes(shape[-1]).reshape(sizes)
        return Origins(columns, columns, code, rows)

    def _changed(
        self, node: Node, known: dict[int, Origins]
    ) -> Iterator[tuple[int, Origins]]:
        operands = []
        for ref in references(node.arguments):
            # A cache is empty before its first key comes to it.
            if 0 not in self._tape.values[ref.value].shape:
                operands.append(ref.value)
        output = node.outputs[0]
        if node.op in ("aten.cat", "aten.stack"):
            yield output, self._beside(node, operands, known)
        elif len(known) == 1 and operands.count(next(iter(known))) == 1:
            ((value, origins),) = known.items()
            yield from self._alone(node, value, origins, operands)
        elif node.op in ("aten.add", "aten.sub") and len(known) == 2:
            yield output, _added(node, *known.values())
        else:
            raise _limit(node)

    def _alone(
        self,
        node: Node,
        value: int,
        origins: Origins,
        operands: list[int],
    ) -> Iterator[tuple[int, Origins]]:
        """One operand comes from a projection."""
        output = node.outputs[0]
        if node.op in MOVES:
            yield from self._moved(node, value, origins)
        elif node.op == "aten.view_as_complex":
            low, high = origins.low, origins.high
            wide = self._tape.values[value].shape[-1]
            code = origins.code.expand(*origins.code.shape[:-1], wide)
            yield (
                output,
                _made(low.amin(-1), high.amax(-1), code.sum(-1), origins.rows),
            )
        elif node.op == "aten.view_as_real":
            yield output, origins.changed(lambda places: places[..., None])
        elif node.op in ("aten.mul", "aten.div"):
            divides = (
                node.op == "aten.div" and value_of(node, "other") == value
            )
            if divides:
                raise _limit(node)
            shape = self._tape.values[output].shape
            yield (
                output,
                origins.changed(lambda places: _wide(places, len(shape))),
            )
        elif node.op == "aten.add":
            yield output, self._biased(node, value, origins, operands)
        else:
            raise _limit(node)

    def _moved(
        self, node: Node, value: int, origins: Origins
    ) -> Iterator[tuple[int, Origins]]:
        shape = self._tape.values[value].shape
        moved: list[list[Tensor]] = []
        try:
            for places in (origins.low, origins.high, origins.code):
                moved.append(moved_places(node, value, places.expand(shape)))
        except (RuntimeError, TypeError, NotImplementedError) as error:
            raise _limit(node) from error
        for output, low, high, code in zip(node.outputs, *moved, strict=True):
            yield output, _made(low, high, code, origins.rows)

    def _beside(
        self, node: Node, operands: list[int], known: dict[int, Origins]
    ) -> Origins:
        """Pieces of one projection joined again."""
        pieces = [known.get(value) for value in operands]
        first = pieces[0]
        if first is None or any(
            p is None or p.rows != first.rows for p in pieces
        ):
            raise Limit(f"{node.where} joins units of several projections")
        shapes = [self._tape.values[value].shape for value in operands]
        join = torch.cat if node.op == "aten.cat" else torch.stack
        dim = int(node.arguments.get("dim") or 0)

        def joined(of: Callable[[Origins], Tensor]) -> Tensor:
            full = []
            for piece, shape in zip(pieces, shapes, strict=True):
                assert piece is not None
                full.append(of(piece).expand(shape))
            return join(full, dim)

        return _made(
            joined(lambda o: o.low),
            joined(lambda o: o.high),
            joined(lambda o: o.code),
            first.rows,
        )

    def _biased(
        self, node: Node, value: int, origins: Origins, operands: list[int]
    ) -> Origins:
        """A bias is added to the columns, before anything turns them."""
        others = [other for other in operands if other != value]
        bias = self.projections.state_rows(others[0]) if others else None
        columns = origins.low.reshape(-1)
        count = self._tape.values[value].shape[-1]
        untouched = origins.is_plain and torch.equal(
            columns, torch.arange(count)
        )
        if bias is None or not untouched or len(bias.places) != count:
            raise _limit(node)
        return replace(origins, rows=(*origins.rows, bias))


def _added(node: Node, first: Origins, second: Origins) -> Origins:
    """A sum of turned and unturned coordinates, or of two projections of the same columns."""
    if first.rows != second.rows:
        same = torch.equal(first.low, second.low)
        if not (same and first.is_plain and second.is_plain):
            raise _limit(node)
        return replace(first, rows=(*first.rows, *second.rows))
    low = torch.minimum(first.low, second.low)
    high = torch.maximum(first.high, second.high)
    return _made(low, high, first.code + second.code, first.rows)


def _wide(places: Tensor, rank: int) -> Tensor:
    """Places with dimensions of size 1 in front, as broadcasting puts them there."""
    more = rank - places.ndim
    return places.reshape((1,) * more + tuple(places.shape))


def _limit(node: Node) -> Limit:
    return Limit(f"{node.where} does more than turn pairs of its units")
