"""Which elements of which parameter an operand is.

An operand of an operation is seldom a parameter as it stands: it is transposed, a third of a fused projection, a head
of it.  All of these only move elements, so doing the same to the numbers ``0, 1, 2, …`` says where each element comes
from, and a solution is written back through the same numbers.

For the operand ``w[2:4].t()`` of a weight of shape (4, 2) the numbers are ``[[4, 6], [5, 7]]``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from lightning_rebasin.merging.refit.places import MOVES, replay_move
from lightning_rebasin.symmetry.trace.tape import Node, Ref, Tape, references

#: Moves that change the precision but no place.
_CASTS = frozenset(("aten._to_copy", "aten.to"))


@dataclass(frozen=True, eq=False)
class Slots:
    """Elements of one tensor of the state.

    Args:
        name: Name in the state dict.
        index: Flat position in the tensor of each element, int64, in the shape of what is made of them.
    """

    name: str
    index: Tensor

    def read(self, state: Mapping[str, Tensor]) -> Tensor:
        """The elements in float64."""
        tensor = state[self.name].detach()
        index = self.index.to(tensor.device)
        return tensor.reshape(-1)[index].double()

    def write(self, state: Mapping[str, Tensor], values: Tensor) -> None:
        """Put values of the shape of ``index`` into the tensor, in place."""
        tensor = state[self.name].detach()
        # reshape copies a tensor in channels-last order, so it is written as a whole
        flat = tensor.reshape(-1).clone()
        flat[self.index.reshape(-1).to(flat.device)] = values.reshape(-1).to(
            flat
        )
        tensor.copy_(flat.reshape(tensor.shape))


@final
class StateUses:
    """How the operations of a tape use the parameters and buffers.

    Args:
        tape: The tape.
        live: Its live nodes by their position.
    """

    def __init__(self, tape: Tape, live: Mapping[int, Node]) -> None:
        self._tape = tape
        self._made: dict[int, tuple[Node, int]] = {}
        for node in live.values():
            if node.op in MOVES or node.op in _CASTS:
                for output, value in enumerate(node.outputs):
                    self._made[value] = (node, output)
        self._counts: dict[str, Tensor] = {}
        self._operations: dict[str, set[str]] = {}
        for node in live.values():
            if node.op not in MOVES and node.op not in _CASTS:
                self._count(node)

    def slots(self, ref: object) -> Slots | None:
        """What part of a state tensor an argument is; None if it is something else."""
        if not isinstance(ref, Ref):
            return None
        moves = []
        value = ref.value
        while value in self._made:
            node, output = self._made[value]
            moves.append((node, output))
            base = node.arguments["self"]
            assert isinstance(base, Ref)
            value = base.value
        origin = self._tape.values[value]
        if origin.origin != "state":
            return None
        count = 1
        for size in origin.shape:
            count *= size
        index = torch.arange(count).reshape(origin.shape)
        for node, output in reversed(moves):
            if node.op in MOVES:
                index = replay_move(node, index, output)
        return Slots(origin.name, index)

    def exclusive(self, slots: Slots) -> bool:
        """Whether each element is used once in the whole pass, and stands in ``slots`` once."""
        elements = slots.index.reshape(-1)
        if len(torch.unique(elements)) < len(elements):
            return False
        return bool((self._counts[slots.name][elements] == 1).all())

    def uses(self, slots: Slots) -> int:
        """How often the most used of the elements is used."""
        return int(self._counts[slots.name][slots.index.reshape(-1)].max())

    def operations(self, name: str) -> set[str]:
        """Names of the operations that see a tensor, moves aside."""
        return self._operations.get(name, set())

    def _count(self, node: Node) -> None:
        for ref in references(node.arguments):
            slots = self.slots(ref)
            if slots is None or not slots.index.numel():
                continue
            if slots.name not in self._counts:
                size = 1
                for value in self._tape.values:
                    if value.origin == "state" and value.name == slots.name:
                        size = int(torch.tensor(value.shape).prod())
                self._counts[slots.name] = torch.zeros(size, dtype=torch.long)
            # An element that is spread over many places is still used once by this operation.
            elements = torch.unique(slots.index)
            self._counts[slots.name][elements] += 1
            self._operations.setdefault(slots.name, set()).add(node.op)
