"""What a rule works with: the labels and constraints of the pass.

A rule is a function ``rule(ctx, op)`` that returns one label for each result of the operation.  ``op`` says what was
called (:mod:`~lightning_rebasin.symmetry.permutations.rules.operation`); ``ctx``, the :class:`Context`, is what may be
done with labels: join, pin, reduce, view, take.  How to write a rule stands in
:mod:`~lightning_rebasin.symmetry.permutations.rules`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import final

import numpy as np
from numpy.typing import NDArray

from lightning_rebasin.symmetry.permutations import (
    label_slices,
    label_views,
    labels,
)
from lightning_rebasin.symmetry.permutations.align import Letter
from lightning_rebasin.symmetry.permutations.elements import (
    Constraints,
    IntArray,
)
from lightning_rebasin.symmetry.permutations.join import (
    Wishes,
    join,
    pin_pending,
)
from lightning_rebasin.symmetry.permutations.labels import Label
from lightning_rebasin.symmetry.permutations.parts import relate_blocks
from lightning_rebasin.symmetry.trace.tape import (
    Node,
    Ref,
    Tape,
    Value,
    references,
)

#: What a rule returns: one label for each result.
Results = list[Label]
#: A label, or the function that makes it when it is first used.
LazyLabel = Label | Callable[[], Label]
BoolArray = NDArray[np.bool_]


class LayoutNotCovered(Exception):  # noqa: N818 - it says what is the case, and no user ever sees it
    """Raised by a rule that sees an overload or a layout that it does not cover.

    The operation is then pinned and reported as one without a rule.  Any other exception of a rule is a defect of ours.
    """


@final
@dataclass(frozen=True)
class Contraction:
    """An operand of a contraction that depends on the input: a place where units can be observed."""

    example: int
    ordinal: int
    op: str
    argument: int
    label: Label
    contracted: frozenset[int]


@final
@dataclass(frozen=True)
class Piece:
    """One piece of a concatenation: its positions ``start`` to ``stop`` are those of ``ref``."""

    start: int
    stop: int
    ref: Ref


@final
@dataclass(frozen=True)
class Pieces:
    """All pieces of a concatenation along ``dim``."""

    dim: int
    pieces: Sequence[Piece]


def _no_values() -> BoolArray:
    return np.zeros(0, dtype=bool)


@final
@dataclass
class Context:
    """State of one pass over one tape, and what rules do with labels.

    Args:
        store: Receives the constraints.
        tape: The operations and values.
        states: Labels of parameters and buffers.
        wishes: Receives requests for finer parameter axes.
        example: Number of the example input that was traced.
        known: Labels of values by their number.
        needed: Which values the results depend on.
        from_data: Which values depend on an input.
        contractions: Receives the places where units can be observed.
        concatenated: Which values are concatenations, and of what.
        unknown: Operations without a rule and where they ran.
    """

    store: Constraints
    tape: Tape
    states: Mapping[str, Label]
    wishes: Wishes
    example: int = 0
    known: dict[int, LazyLabel] = field(default_factory=dict)
    needed: BoolArray = field(default_factory=_no_values)
    from_data: BoolArray = field(default_factory=_no_values)
    contractions: list[Contraction] = field(default_factory=list)
    concatenated: dict[int, Pieces] = field(default_factory=dict)
    unknown: dict[str, str] = field(default_factory=dict)

    def value(self, ref: Ref) -> Value:
        """What the tape says about a tensor."""
        return self.tape.values[ref.value]

    def shape(self, ref: Ref) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self.value(ref).shape

    def label(self, ref: Ref) -> Label:
        """Present label of a tensor."""
        found = self.known.get(ref.value)
        if found is None:
            found = self._first_label(ref)
        elif callable(found):
            found = found()
        self.known[ref.value] = found
        return labels.canonical(found, self.store)

    def _first_label(self, ref: Ref) -> Label:
        """Label of a value that no operation made."""
        value = self.value(ref)
        if value.origin == "state":
            return self.states[value.name]
        if value.origin == "constant" and 0 not in value.shape:
            # Where a constant does not vary, its positions may be exchanged.
            return labels.plain(value.shape, value.varying)
        return labels.fixed(value.shape)

    def piece_of(self, ref: Ref, dim: int, index: IntArray) -> Label | None:
        """The piece of a concatenation that ``index`` cuts out of it, or ``None``.

        Args:
            ref: A tensor, perhaps made by a concatenation.
            dim: The dimension that is cut.
            index: Its positions, for instance 3, 4 of a concatenation of 2×3 and 2×4 along ``dim`` 1: the first two
                columns of the second piece.
        """
        whole = self.concatenated.get(ref.value)
        if whole is None or whole.dim != dim or len(index) == 0:
            return None
        steps = np.diff(index)
        if (steps != 1).any():
            return None
        for piece in whole.pieces:
            if piece.start <= index[0] and index[-1] < piece.stop:
                inner = index - piece.start
                # The piece may be a concatenation too.
                deeper = self.piece_of(piece.ref, dim, inner)
                if deeper is not None:
                    return deeper
                label = self.label(piece.ref)
                return self.take(label, dim, inner)
        return None

    def join(
        self,
        operands: Sequence[tuple[Label, Sequence[Letter]]],
        out: Sequence[Letter],
        batch: Sequence[Letter] = (),
    ) -> Label:
        """Join labels; see :func:`~lightning_rebasin.symmetry.permutations.join.join`."""
        return join(self.store, operands, out, batch=batch, wishes=self.wishes)

    def meet(self, *operands: Label) -> Label:
        """Join labels of as many dimensions position by position; size 1 broadcasts."""
        letters = range(operands[0].ndim)
        return self.join([(label, letters) for label in operands], letters)

    def reduce(self, label: Label, dims: Sequence[int]) -> Label:
        """Reduce dimensions away."""
        letters = range(label.ndim)
        left = label.dims_without(*dims)
        return self.join([(label, letters)], left)

    def normalise(self, label: Label, dims: Sequence[int]) -> Label:
        """A reduction over ``dims`` whose result meets every position again (softmax, normalisation)."""
        label = self.use(label)
        relate_blocks(self.store, label.parts, label.sites_of(dims))
        return label

    def pin(self, label: Label, dims: Sequence[int], reason: str) -> Label:
        """Fix the order along some dimensions."""
        return labels.pin_dims(label, dims, self.store, reason)

    def pin_and_reduce(
        self, label: Label, dims: Sequence[int], reason: str
    ) -> Label:
        """Fix the order along some dimensions, which do not appear in the result."""
        return self.reduce(self.pin(label, dims, reason), dims)

    def pin_all(self, refs: Sequence[Ref], reason: str) -> None:
        """Fix the order along every dimension of some tensors."""
        for ref in refs:
            label = self.use(self.label(ref))
            self.pin(label, range(label.ndim), reason)

    def use(self, label: Label) -> Label:
        """Commit what was picked out of a tensor."""
        if not label.pending:
            return label
        pin_pending(self.store, label)
        return replace(label, pending=())

    def view(self, label: Label, shape: Sequence[int]) -> Label:
        """Row-major reshape."""
        return label_views.view(label, shape, self.store)

    def take(self, label: Label, dim: int, index: IntArray) -> Label:
        """Keep the positions ``index`` of one dimension."""
        return label_slices.take(label, dim, index, self.store)


def unknown(ctx: Context, node: Node) -> Results:
    """No rule: everything that the operation touches is pinned."""
    tensors = list(references(node.arguments))
    ctx.pin_all(tensors, f"{node.op} has no rule")
    shapes = [ctx.shape(Ref(number)) for number in node.outputs]
    return [labels.fixed(shape) for shape in shapes]
