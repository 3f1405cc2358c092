"""The tape: what one forward pass computed, as a list of operations on numbered values.

The tape is in single-assignment form: a write into a tensor makes a new value of it, and, if the tensor is a view, new
values of everything behind it.  Rules therefore never see mutation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

#: Operations that hand a value to Python code: they count although they have no result.
READS = frozenset(
    ("aten._local_scalar_dense", "aten.is_nonzero", "aten.equal")
)
Origin = Literal["operation", "input", "state", "constant"]


@dataclass(frozen=True)
class Ref:
    """A tensor argument: the number of its value."""

    value: int


@dataclass
class Value:
    """One tensor of the forward pass.

    Args:
        shape: Its shape.
        origin: Computed by an operation, an input, a parameter or buffer, or a constant.
        name: Name in the state dict, for ``"state"``.
        varying: Of a constant: the dimensions along which it varies.
        array: Of a small integer constant: its numbers, for indexing.
        integral: Whether it holds integers or booleans.
        mask: Whether it holds booleans.
    """

    shape: tuple[int, ...]
    origin: Origin
    name: str = ""
    varying: tuple[int, ...] = ()
    array: NDArray[Any] | None = None
    integral: bool = False
    mask: bool = False


@dataclass
class Node:
    """One operation: bound arguments by name, with tensors replaced by :class:`Ref`.

    Args:
        op: Its name without overload, for instance ``"aten.add"``; in-place variants carry the functional name.
        arguments: By the names of the schema, defaults included.
        outputs: Numbers of the values that it makes.
        where: The operation and the submodule that ran it, for messages.
        pointwise: Whether every place of the result depends on the same place of the operands only.
        contraction: Which run of this contraction it is, counted from 0 for each operation; −1 for other operations.
    """

    op: str
    arguments: dict[str, Any]
    outputs: list[int]
    where: str
    pointwise: bool = False
    contraction: int = -1


@dataclass
class Tape:
    """Values and operations of one forward pass."""

    values: list[Value] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    results: list[int] = field(default_factory=list)

    def new_value(self, value: Value) -> int:
        """Number a value."""
        self.values.append(value)
        return len(self.values) - 1

    def live_nodes(self) -> tuple[list[Node], NDArray[np.bool_]]:
        """Operations that the results depend on, in order, and which values are needed; constants need none."""
        needed = np.zeros(len(self.values), dtype=bool)
        needed[self.results] = True
        live = []
        # Backwards, so that all readers of a value come before the node that makes it.
        for node in reversed(self.nodes):
            used = any(
                needed[v] and self.values[v].origin == "operation"
                for v in node.outputs
            )
            if not used and node.op not in READS:
                continue
            live.append(node)
            for ref in references(node.arguments):
                needed[ref.value] = True
        return live[::-1], needed

    def touched(self) -> set[str]:
        """Names of the parameters and buffers that live operations or results use."""
        # A parameter that is returned as it is was used, too.
        used = set(self.results)
        for node in self.live_nodes()[0]:
            used.update(ref.value for ref in references(node.arguments))
        found = [self.values[number] for number in used]
        return {value.name for value in found if value.origin == "state"}

    def from_data(self) -> NDArray[np.bool_]:
        """Which values depend on an input."""
        result = np.array(
            [value.origin == "input" for value in self.values], dtype=bool
        )
        for node in self.nodes:
            if not any(
                result[ref.value] for ref in references(node.arguments)
            ):
                continue
            for number in node.outputs:
                # Results that are not tensors are entered as constants.
                if self.values[number].origin == "operation":
                    result[number] = True
        return result


def references(argument: Any) -> Iterator[Ref]:
    """All tensor references inside an argument."""
    if isinstance(argument, Ref):
        yield argument
    elif isinstance(argument, dict):
        for item in argument.values():
            yield from references(item)
    elif isinstance(argument, (list, tuple)):
        for item in argument:
            yield from references(item)
