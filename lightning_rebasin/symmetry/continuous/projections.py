"""Projections: products of an input with a weight of the state, and what is made of their results.

Queries and keys are columns of the results of projections.  A column comes from a row of the weight, or from a column
of it, or from a part of a packed one; the bias has an entry for it as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from lightning_rebasin.symmetry.continuous import operations as ops
from lightning_rebasin.symmetry.continuous.roles import (
    MOVES,
    compressed,
    moved_places,
)
from lightning_rebasin.symmetry.trace.tape import Node, Ref, Tape, references

#: Contractions whose right operand may be the weight of a projection.
_PROJECTIONS = ops.names("mm addmm bmm baddbmm")
_ANGLES = ops.names("cos sin polar view_as_complex")


@final
@dataclass(frozen=True, eq=False)
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
class Projections:
    """The projections of one tape.

    Args:
        tape: The tape.
    """

    def __init__(self, tape: Tape) -> None:
        self.tape = tape
        #: For each value the operation that made it.
        self.makers: dict[int, Node] = {}
        for node in tape.nodes:
            self.makers.update(dict.fromkeys(node.outputs, node))

    def are_all_behind(self, value: int) -> bool:
        """Whether a value is made of projections without another contraction in between."""
        reached = False
        for node in self._behind(value):
            if node.op not in ops.CONTRACTED and node.op not in ops.ATTENTION:
                continue
            if self.rows_of(node) is not None:
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
        tensor = self.tape.values[value]
        constant = tensor.origin == "constant" and not tensor.integral
        return constant and len(tensor.varying) > 1

    def behind(self, *values: int) -> Iterator[Rows]:
        """The tensors of all projections behind some values."""
        for value in values:
            for node in self._behind(value):
                yield from self.rows_of(node) or ()

    def _behind(self, value: int) -> Iterator[Node]:
        """The operations behind a value, as far as the projections."""
        pending, seen = [value], {value}
        while pending:
            node = self.makers.get(pending.pop())
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
        """Whether operations made both factors of a contraction: angles are products of constants and positions."""
        factors = [value_of(node, name) for name in _factors(node)]
        return all(self._is_computed_value(value) for value in factors)

    def _is_computed_value(self, value: int) -> bool:
        """Whether something else than copies of constants and inputs made a value."""
        node = self.makers.get(value)
        if node is None:
            return False
        if node.op not in ops.COPIES:
            return self.tape.values[value].origin == "operation"
        return any(
            self._is_computed_value(ref.value)
            for ref in references(node.arguments)
        )

    def rows_of(self, node: Node) -> tuple[Rows, ...] | None:
        """The tensors of a projection; ``None`` if the operation is none."""
        if node.op not in _PROJECTIONS:
            return None
        _, right, added = ops.CONTRACTED[node.op]
        weight = self.state_rows(value_of(node, right))
        if (
            weight is None
            or self.tape.values[value_of(node, right)].origin == "constant"
        ):
            return None
        given = node.arguments.get(added) if added else None
        if not isinstance(given, Ref):
            return (weight,)
        bias = self.state_rows(given.value)
        return None if bias is None else (weight, bias)

    def state_rows(self, value: int) -> Rows | None:
        """The tensor of the state behind a value, if its last dimension is one dimension of that tensor, or a part."""
        steps: list[tuple[Node, int]] = []
        below = value
        while self.tape.values[below].origin != "state":
            node = self.makers.get(below)
            if node is None or node.op not in MOVES:
                return None
            steps.append((node, below))
            below = next(references(node.arguments)).value
        tensor = self.tape.values[below]
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


def _factors(node: Node) -> tuple[str, str]:
    if node.op in ops.ATTENTION:
        return "query", "key"
    left, right, _ = ops.CONTRACTED[node.op]
    return left, right


def value_of(node: Node, argument: str) -> int:
    """The value of a tensor argument; −1 if it is none."""
    given = node.arguments.get(argument)
    return given.value if isinstance(given, Ref) else -1
