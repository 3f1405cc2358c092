"""One operation as its rule sees it: arguments by name, their labels and shapes, the shapes of the results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

from lightning_rebasin.symmetry.permutations import labels
from lightning_rebasin.symmetry.permutations.labels import Label
from lightning_rebasin.symmetry.permutations.rules.base import (
    Context,
    Contraction,
    Results,
)
from lightning_rebasin.symmetry.trace.tape import Node, Ref, references


@final
@dataclass(frozen=True)
class Operation:
    """One operation on the tape as its rule sees it.

    Args:
        ctx: The pass.
        node: The operation.
    """

    ctx: Context
    node: Node

    @property
    def name(self) -> str:
        """Its name, for instance ``"aten.add"``."""
        return self.node.op

    def __getitem__(self, argument: str) -> Any:
        """An argument that every overload has; tensors are references."""
        return self.node.arguments[argument]

    def get(self, argument: str) -> Any:
        """An argument that some overloads have, or ``None``."""
        return self.node.arguments.get(argument)

    def has_tensor(self, argument: str) -> bool:
        """Whether an argument is there and a tensor."""
        return isinstance(self.get(argument), Ref)

    def label(self, argument: str = "self") -> Label:
        """Label of a tensor argument."""
        return self.ctx.label(self[argument])

    def labels(self, *arguments: str) -> Results:
        """Labels of those arguments that are there and tensors."""
        given = [name for name in arguments if self.has_tensor(name)]
        return [self.label(name) for name in given]

    def shape(self, argument: str = "self") -> tuple[int, ...]:
        """Shape of a tensor argument."""
        return self.ctx.shape(self[argument])

    def dim(self, ndim: int, argument: str = "dim") -> int:
        """A dimension argument of an operation on ``ndim`` dimensions as a non-negative number."""
        given: int = self[argument] or 0
        # A scalar takes the dimensions 0 and -1.
        return given % max(ndim, 1)

    @property
    def tensors(self) -> list[Ref]:
        """All tensor arguments."""
        return list(references(self.node.arguments))

    @property
    def results(self) -> list[Ref]:
        """All results."""
        return [Ref(number) for number in self.node.outputs]

    @property
    def out_shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the results."""
        return [self.ctx.shape(result) for result in self.results]

    @property
    def out_shape(self) -> tuple[int, ...]:
        """Shape of the first result."""
        return self.ctx.shape(self.results[0])

    def needs(self, output: int) -> bool:
        """Whether anything depends on a result."""
        number = self.node.outputs[output]
        return bool(self.ctx.needed[number])

    def fixed_results(self, first: int = 0) -> Results:
        """Results from ``first`` on, in which every position is its own."""
        shapes = self.out_shapes[first:]
        return [labels.fixed(shape) for shape in shapes]

    def observe(
        self, argument: int, name: str, label: Label, contracted: Sequence[int]
    ) -> None:
        """Remember an operand that is contracted over some of its dimensions, if it depends on the input.

        Args:
            argument: Which of the two operands.
            name: Its name.
            label: Its label.
            contracted: Dimensions over which it is contracted.
        """
        ctx = self.ctx
        ref: Ref = self[name]
        ordinal = self.node.contraction
        # Products whose operands are weights alone show no units.
        if ordinal < 0 or not ctx.from_data[ref.value]:
            return
        sites = frozenset(label.sites_of(contracted))
        seen = Contraction(
            ctx.example, ordinal, self.name, argument, label, sites
        )
        ctx.contractions.append(seen)


def dims_of(argument: Any, ndim: int) -> list[int]:
    """A dimension argument (number, list or ``None`` for all) as non-negative numbers.

    Args:
        argument: The argument.
        ndim: Number of dimensions of the tensor.

    Example:
        >>> dims_of([-1, 0], 3), dims_of(-2, 3), dims_of(None, 3), dims_of([], 3)
        ([2, 0], [1], [0, 1, 2], [0, 1, 2])
    """
    if argument is None or argument == []:
        return list(range(ndim))
    if ndim == 0:
        # A scalar takes the dimensions 0 and -1 and has none.
        return []
    given = argument if isinstance(argument, list | tuple) else [argument]
    return [int(dim) % ndim for dim in given]
