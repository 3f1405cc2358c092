"""Which units of a projection each coordinate of a query or a key is made of.

Rotary positions turn pairs of coordinates, so after them a coordinate is a combination of the two units of its pair; how
the pairs are chosen (halves, neighbours, complex numbers, a part of the head only) is up to the network.  Here the
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
from lightning_rebasin.symmetry.continuous.roles import (
    MOVING,
    RESHAPING,
    STAYING,
    compressed,
    moved_places,
)
from lightning_rebasin.symmetry.trace.tape import Node, Ref, Tape, references

_MOVES = MOVING | RESHAPING | STAYING
#: Contractions whose right operand may be the weight of a projection.
_PROJECTIONS = ops.names("mm addmm bmm baddbmm")

_ANGLES = ops.names("cos sin polar view_as_complex")


@final
@dataclass(frozen=True)
class Rows:
    """Where the columns of a projection's result come from.

    Args:
        tensor: A tensor of the state, weight or bias.
        dim: Its dimension.
        places: For each column the position along the dimension.
    """

    tensor: str
    dim: int
    places: Tensor


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
        tape: The tape.
    """

    def __init__(self, tape: Tape) -> None:
        self._tape = tape
        self._makers: dict[int, Node] = {}
        for node in tape.nodes:
            self._makers.update(dict.fromkeys(node.outputs, node))
        self._found: dict[int, Origins | None] = {}

    def reaches_projections_only(self, value: int) -> bool:
        """Whether a value is made of projections without another contraction in between."""
        reached = False
        for node in self._behind(value):
            if node.op not in ops.CONTRACTED and node.op not in ops.ATTENTION:
                continue
            if self._rows_of(node) is not None:
                reached = True
            elif self._is_computed(node):
                return False
        return reached

    def is_turned(self, value: int) -> bool:
        """Whether angles have to do with a value: sines and cosines, complex numbers, or a table of numbers."""
        for node in self._behind(value):
            if node.op in _ANGLES:
                return True
            tables = [ref.value for ref in references(node.arguments)]
            if node.op == "aten.mul" and any(map(self._is_table, tables)):
                return True
        return False

    def _is_table(self, value: int) -> bool:
        tensor = self._tape.values[value]
        constant = tensor.origin == "constant" and not tensor.integral
        return constant and len(tensor.varying) > 1

    def projections(self, *values: int) -> Iterator[Rows]:
        """The tensors of all projections behind some values."""
        for value in values:
            for node in self._behind(value):
                yield from self._rows_of(node) or ()

    def _behind(self, value: int) -> Iterator[Node]:
        """The operations behind a value, as far as the projections."""
        pending, seen = [value], {value}
        while pending:
            node = self._makers.get(pending.pop())
            if node is None:
                continue
            yield node
            if node.op in ops.CONTRACTED:
                continue
            for ref in references(node.arguments):
                if ref.value not in seen:
                    seen.add(ref.value)
                    pending.append(ref.value)

    def _is_computed(self, node: Node) -> bool:
        """Whether both factors of a contraction depend on operations: angles are products of constants and positions."""
        left, right = (node.arguments.get(n) for n in _factors(node))
        for given in (left, right):
            if isinstance(given, Ref) and not self._is_computed_value(
                given.value
            ):
                return False
        return True

    def _is_computed_value(self, value: int) -> bool:
        """Whether something else than copies of constants and inputs made a value."""
        node = self._makers.get(value)
        if node is None:
            return False
        if node.op not in ops.COPIES:
            return self._tape.values[value].origin == "operation"
        return any(
            self._is_computed_value(ref.value)
            for ref in references(node.arguments)
        )

    def of(self, value: int) -> Origins | None:
        """The origins of a value; ``None`` if it does not come from a projection.

        Raises:
            Limit: An operation in between is not linear, or mixes columns in a way that cannot be followed.
        """
        if value not in self._found:
            node = self._makers.get(value)
            self._found[value] = None
            if node is not None:
                for output, found in self._through(node).items():
                    self._found[output] = found
        return self._found[value]

    def _through(self, node: Node) -> dict[int, Origins | None]:
        """The origins of all results of an operation."""
        rows = self._rows_of(node)
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
        if node.op in _MOVES:
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
            divides = node.op == "aten.div" and _value(node, "other") == value
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
        bias = self._state_rows(others[0]) if others else None
        columns = origins.low.reshape(-1)
        count = self._tape.values[value].shape[-1]
        untouched = origins.is_plain and torch.equal(
            columns, torch.arange(count)
        )
        if bias is None or not untouched or len(bias.places) != count:
            raise _limit(node)
        return replace(origins, rows=(*origins.rows, bias))

    def _rows_of(self, node: Node) -> tuple[Rows, ...] | None:
        """The tensors of a projection; ``None`` if the operation is none."""
        if node.op not in _PROJECTIONS:
            return None
        _, right, added = ops.CONTRACTED[node.op]
        weight = self._state_rows(_value(node, right))
        if (
            weight is None
            or self._tape.values[_value(node, right)].origin == "constant"
        ):
            return None
        given = node.arguments.get(added) if added else None
        if not isinstance(given, Ref):
            return (weight,)
        bias = self._state_rows(given.value)
        return None if bias is None else (weight, bias)

    def _state_rows(self, value: int) -> Rows | None:
        """The tensor of the state behind a value, if its last dimension is one dimension of that tensor, or a part."""
        steps: list[tuple[Node, int]] = []
        below = value
        while self._tape.values[below].origin != "state":
            node = self._makers.get(below)
            if node is None or node.op not in _MOVES:
                return None
            steps.append((node, below))
            below = next(references(node.arguments)).value
        tensor = self._tape.values[below]
        if not tensor.shape or len(tensor.shape) > 2:
            return None
        for dim, size in enumerate(tensor.shape):
            sizes = [1] * len(tensor.shape)
            sizes[dim] = size
            places = torch.arange(size).reshape(sizes).expand(tensor.shape)
            moved = _along_last(steps, below, places)
            if moved is not None:
                return Rows(tensor.name, dim, moved)
        return None


def _along_last(
    steps: list[tuple[Node, int]], value: int, places: Tensor
) -> Tensor | None:
    """Places after some steps if they then change along the last dimension only."""
    try:
        for node, output in reversed(steps):
            number = node.outputs.index(output)
            places = moved_places(node, value, places)[number]
            value = output
    except (RuntimeError, TypeError, NotImplementedError):
        return None
    count = places.shape[-1]
    narrow = compressed(places)
    last = narrow.numel() == narrow.shape[-1] == count
    return narrow.reshape(-1) if last and count > 1 else None


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


def _factors(node: Node) -> tuple[str, str]:
    if node.op in ops.ATTENTION:
        return "query", "key"
    left, right, _ = ops.CONTRACTED[node.op]
    return left, right


def _value(node: Node, argument: str) -> int:
    """The value of a tensor argument; −1 if it is none."""
    given = node.arguments.get(argument)
    return given.value if isinstance(given, Ref) else -1


def _wide(places: Tensor, rank: int) -> Tensor:
    """Places with dimensions of size 1 in front, as broadcasting puts them there."""
    more = rank - places.ndim
    return places.reshape((1,) * more + tuple(places.shape))


def _limit(node: Node) -> Limit:
    return Limit(f"{node.where} does more than turn pairs of its units")
