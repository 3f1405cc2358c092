"""What a rule is: a function from an operation on the tape to the labels of its results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_rebasin.errors import InternalError
from lightning_rebasin.symmetry.permutations import labels
from lightning_rebasin.symmetry.permutations.elements import (
    Constraints,
    Elements,
)
from lightning_rebasin.symmetry.permutations.join import (
    Letter,
    Wishes,
    join,
    reduce_sites,
)
from lightning_rebasin.symmetry.permutations.labels import Label, Part
from lightning_rebasin.symmetry.trace.tape import Node, Ref, Tape, references

Rule = Callable[["Context", Node], Sequence[Label]]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for ATen operations (names without ``aten.``, overload and in-place underscore)."""
    ops = []
    for group in names:
        # Operations of other namespaces are named in full.
        ops += [
            name if "." in name else f"aten.{name}" for name in group.split()
        ]

    def register(function: Rule) -> Rule:
        for op in ops:
            if op in RULES:
                raise InternalError(
                    f"{op} has two rules: {RULES[op].__name__} and {function.__name__}"
                )
            RULES[op] = function
        return function

    return register


class LayoutNotCovered(Exception):  # noqa: N818 - a message to the pass, not an error of anybody's
    """Raised by a rule that meets an overload or layout it does not cover; the operation is pinned and reported."""


@dataclass(frozen=True)
class Contraction:
    """An operand of a contraction that depends on the input: a place where units can be observed."""

    example: int
    ordinal: int
    op: str
    argument: int
    label: Label
    contracted: frozenset[int]


@dataclass
class Context:
    """State of one pass over one tape."""

    store: Constraints
    tape: Tape
    states: Mapping[str, Label]
    wishes: Wishes
    example: int = 0
    known: dict[int, Label | Callable[[], Label]] = field(default_factory=dict)
    needed: NDArray[np.bool_] = field(
        default_factory=lambda: np.zeros(0, dtype=bool)
    )
    from_data: NDArray[np.bool_] = field(
        default_factory=lambda: np.zeros(0, dtype=bool)
    )
    contractions: list[Contraction] = field(default_factory=list)
    #: Concatenations: dimension and ``(start, stop, piece)``.
    pieces: dict[int, tuple[int, list[tuple[int, int, Ref]]]] = field(
        default_factory=dict
    )
    #: Operations without a rule and where they ran.
    unknown: dict[str, str] = field(default_factory=dict)

    def label(self, ref: Ref) -> Label:
        """Present label of a tensor argument."""
        found = self.lazy(ref.value)
        if callable(found):
            found = found()
            self.known[ref.value] = found
        return labels.canonical(found, self.store)

    def lazy(self, number: int) -> Label | Callable[[], Label]:
        """Label of a value, or the function that makes it."""
        if number not in self.known:
            value = self.tape.values[number]
            if value.origin == "state":
                self.known[number] = self.states[value.name]
            elif value.origin == "constant" and 0 not in value.shape:
                self.known[number] = labels.plain(value.shape, value.varying)
            else:
                self.known[number] = labels.fixed(value.shape)
        return self.known[number]

    def piece_of(
        self, ref: Ref, dim: int, index: NDArray[np.int64]
    ) -> Label | None:
        """The piece of a concatenation that ``index`` cuts out of it, or ``None``."""
        if (
            ref.value not in self.pieces
            or self.pieces[ref.value][0] != dim
            or not len(index)
        ):
            return None
        if bool((np.diff(index) != 1).any()):
            return None
        for start, stop, piece in self.pieces[ref.value][1]:
            if start <= index[0] and index[-1] < stop:
                inner = self.piece_of(piece, dim, index - start)
                return inner or labels.take(
                    self.label(piece), dim, index - start, self.store
                )
        return None

    def shape(self, ref: Ref) -> tuple[int, ...]:
        """Shape of a tensor argument."""
        return self.tape.values[ref.value].shape

    def out_shape(self, node: Node, output: int = 0) -> tuple[int, ...]:
        """Shape of a result."""
        return self.tape.values[node.outputs[output]].shape

    def array(self, ref: Any) -> NDArray[Any] | None:
        """Numbers of a constant index, if they are known."""
        return (
            self.tape.values[ref.value].array if isinstance(ref, Ref) else None
        )

    def pin(self, label: Label, dims: Sequence[int], reason: str) -> Label:
        """Fix the order along some dimensions."""
        return labels.pin_dims(label, dims, self.store, reason)

    def join(
        self,
        operands: Sequence[tuple[Label, Sequence[Letter]]],
        out: Sequence[Letter],
        batch: Sequence[Letter] = (),
    ) -> Label:
        """Join labels; see :func:`~lightning_rebasin.symmetry.permutations.join.join`."""
        return join(self.store, operands, out, batch=batch, wishes=self.wishes)

    def reduce(self, label: Label, dims: Sequence[int]) -> Label:
        """Reduce dimensions away."""
        letters = list(range(len(label.dims)))
        return self.join(
            [(label, letters)], [x for x in letters if x not in dims]
        )

    def normalise(self, label: Label, dims: Sequence[int]) -> Label:
        """A reduction over ``dims`` whose result meets every position again (softmax, normalisation)."""
        label = self.use(label)
        sites = {s for dim in dims for s in label.dims[dim]}
        reduce_sites(self.store, list(label.parts), sites, keep=True)
        return label

    def use(self, label: Label) -> Label:
        """Commit what was picked out of a tensor."""
        for elements in label.pending:
            self.store.pin(elements, "it is picked out by itself")
        return Label(label.dims, label.sizes, label.parts, label.pinned)

    def pin_all(self, refs: Sequence[Ref], reason: str) -> None:
        """Fix the order along every dimension of some tensors."""
        for ref in refs:
            label = self.use(self.label(ref))
            self.pin(label, range(len(label.dims)), reason)

    def fresh_part(self, sites: tuple[int, ...], sizes: Sequence[int]) -> Part:
        """A part over new elements."""
        return Part(sites, self.store.fresh(tuple(sizes[s] for s in sites)))

    def observe(
        self,
        node: Node,
        argument: int,
        ref: Ref,
        label: Label,
        contracted: Sequence[int],
    ) -> None:
        """Remember an operand that is contracted over some of its dimensions, if it depends on the input."""
        if node.contraction < 0 or not self.from_data[ref.value]:
            return
        sites = frozenset(s for dim in contracted for s in label.dims[dim])
        self.contractions.append(
            Contraction(
                self.example, node.contraction, node.op, argument, label, sites
            )
        )


def unknown(ctx: Context, node: Node) -> list[Label]:
    """No rule: everything that the operation touches is pinned."""
    ctx.pin_all(list(references(node.arguments)), f"{node.op} has no rule")
    return [
        labels.fixed(ctx.out_shape(node, i)) for i in range(len(node.outputs))
    ]


def dims_of(argument: Any, ndim: int) -> list[int]:
    """A dimension argument (number, list or ``None`` for all) as non-negative numbers."""
    if argument is None or argument == []:
        return list(range(ndim))
    given = argument if isinstance(argument, (list, tuple)) else [argument]
    return [int(d) % max(ndim, 1) for d in given] if ndim else []


def elements_like(store: Constraints, part: Part) -> Elements:
    """New elements in the shape of a part."""
    return store.fresh(part.elements.shape)
