"""Labels written out: a bench on which one rule runs on hand-made labels, and networks around one operation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_rebasin.symmetry.permutations.elements import Constraints
from lightning_rebasin.symmetry.permutations.join import Wishes
from lightning_rebasin.symmetry.permutations.labels import Label, Part, plain
from lightning_rebasin.symmetry.permutations.rules import RULES
from lightning_rebasin.symmetry.permutations.rules.base import Context
from lightning_rebasin.symmetry.trace.tape import Node, Ref, Tape, Value


class Bench:
    """One store, one tape, and rules that run one by one."""

    def __init__(self) -> None:
        self.store = Constraints()
        self.ctx = Context(self.store, Tape(), {}, Wishes())

    def units(self, *shape: int) -> Label:
        """A label with new elements along every dimension longer than 1, like that of a parameter."""
        label = plain(shape)
        parts = [
            Part((site,), self.store.fresh((size,)))
            for site, size in enumerate(label.sizes)
        ]
        return Label(label.dims, label.sizes, tuple(parts))

    def tensor(self, label: Label, **given: Any) -> Ref:
        """A tensor on the tape with a label; ``given`` are further fields of its value."""
        ref = Ref(
            self.ctx.tape.new_value(Value(label.shape, "operation", **given))
        )
        self.ctx.known[ref.value] = label
        return ref

    def constant(self, array: Any) -> Ref:
        """A constant of the model whose numbers are known."""
        array = np.asarray(array)
        everywhere = tuple(range(array.ndim))
        mask = array.dtype == np.bool_
        value = Value(
            array.shape,
            "constant",
            varying=everywhere,
            array=array,
            integral=True,
            mask=mask,
        )
        return Ref(self.ctx.tape.new_value(value))

    def run(
        self,
        op: str,
        /,
        *out_shapes: Sequence[int],
        needed: Sequence[int] | None = None,
        **arguments: Any,
    ) -> Any:
        """The label of the result of an operation, or all of them if there are several.

        Labels among the arguments become tensors.
        """
        refs = {
            name: self.tensor(a) if isinstance(a, Label) else a
            for name, a in arguments.items()
        }
        tape = self.ctx.tape
        outputs = [
            tape.new_value(Value(tuple(shape), "operation"))
            for shape in out_shapes
        ]
        self.ctx.needed = np.ones(len(tape.values), dtype=bool)
        self.ctx.from_data = np.ones(len(tape.values), dtype=bool)
        for place, number in enumerate(outputs):
            self.ctx.needed[number] = needed is None or place in needed
        name = op if "." in op else f"aten.{op}"
        found = RULES[name](self.ctx, Node(name, refs, outputs, ""))
        # A concatenation puts its label into the context itself.
        labels = list(found) or [
            self.ctx.label(Ref(number))
            for number in outputs
            if number in self.ctx.known
        ]
        assert [label.shape for label in labels] == [
            tuple(shape) for shape in out_shapes
        ][: len(labels)]
        return labels[0] if len(labels) == 1 else labels

    def tables(self, kind: str = "") -> list[tuple[Any, ...]]:
        """What was emitted so far: kind, left, right."""
        return [
            (t.kind, t.left.tolist(), t.right.tolist())
            for t in self.store.tables
            if kind in ("", t.kind)
        ]

    @property
    def pins(self) -> set[int]:
        """Elements that stay where they are."""
        return {
            i
            for t in self.store.tables
            if t.reason and not t.defines
            for i in t.left.tolist()
        }


def parts_of(label: Label) -> dict[tuple[int, ...], Any]:
    """The elements of a label by their sites."""
    return {part.sites: part.elements.ids.tolist() for part in label.parts}


def noise(*shape: int, seed: int = 1) -> Tensor:
    """Float64 noise."""
    return torch.randn(
        *shape,
        dtype=torch.float64,
        generator=torch.Generator().manual_seed(seed),
    )


class Between(nn.Module):
    """``after(operation(relu(before(x))))``."""

    def __init__(
        self,
        before: nn.Module,
        operation: Callable[[Tensor], Tensor],
        after: nn.Module,
    ) -> None:
        super().__init__()
        self.before, self.operation, self.after = before, operation, after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.operation(F.relu(self.before(x))))


def around(operation: Callable[[Tensor], Tensor], width: int = 8) -> Between:
    """An operation on 8 units between two linear layers; the input is ``(batch, 5)``."""
    return Between(nn.Linear(5, 8), operation, nn.Linear(width, 2))
