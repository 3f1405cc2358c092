"""What a plan must know of a pass: who makes a value, who uses it, and which layers it depends on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

from lightning_rebasin.merging.refit.places import MOVES, number
from lightning_rebasin.merging.refit.slots import StateUses
from lightning_rebasin.symmetry.trace.tape import Node, Tape, references


@final
class Flow:
    """One forward pass, read for a plan.

    Args:
        tape: The pass, in eval mode.
        samples: Size of its batch.
    """

    def __init__(self, tape: Tape, samples: int) -> None:
        self.tape = tape
        self.samples = samples
        #: The place of each operation, by its position on the tape.
        self.places = number(tape)
        #: Operations that the results depend on, by their position.
        self.live = _live(tape)
        self.uses = StateUses(tape, self.live)
        #: For each value, whether it depends on the input.
        self.from_data = tape.from_data()
        self._consumers = _consumers(self.live)
        self._latest = self._latest_layers()

    def shape(self, value: int) -> tuple[int, ...]:
        """Shape of a value."""
        return self.tape.values[value].shape

    def only_user(self, value: int) -> int | None:
        """Position of the one operation that sees a value; None if several do, or the caller of the network."""
        users = self._consumers.get(value, [])
        if len(users) != 1 or value in self.tape.results:
            return None
        return users[0]

    def known_before(self, value: int, position: int) -> bool:
        """Whether a value depends only on layers that run no later than ``position``."""
        return self._latest.get(value, -1) <= position

    def _latest_layers(self) -> dict[int, int]:
        """For every value the last operation behind it that may be a layer, -1 for none."""
        latest: dict[int, int] = {}
        for position, node in self.live.items():
            refs = list(references(node.arguments))
            before = max((latest.get(r.value, -1) for r in refs), default=-1)
            # Whatever sees a parameter may be a layer; a moved parameter is still nothing but a parameter.
            weighted = any(self.uses.slots(ref) is not None for ref in refs)
            if weighted and node.op not in MOVES:
                before = max(before, position)
            for value in node.outputs:
                latest[value] = before
        return latest


def _live(tape: Tape) -> dict[int, Node]:
    live = {id(node) for node in tape.live_nodes()[0]}
    nodes = enumerate(tape.nodes)
    return {position: node for position, node in nodes if id(node) in live}


def _consumers(live: Mapping[int, Node]) -> dict[int, list[int]]:
    """For each value the positions of the operations that see it."""
    found: dict[int, list[int]] = {}
    for position, node in live.items():
        for value in {ref.value for ref in references(node.arguments)}:
            found.setdefault(value, []).append(position)
    return found
