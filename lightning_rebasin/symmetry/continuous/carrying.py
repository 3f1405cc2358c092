"""Which groups of units the values of a tape carry, and along which dimensions.

The label of a value says which elements stand along its sites; elements belong to cells, cells are groups.  A value
*carries* a group if units of it stand along some of its sites.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from lightning_rebasin.symmetry.permutations.elements import Elements
from lightning_rebasin.symmetry.permutations.labels import Label, Part
from lightning_rebasin.symmetry.permutations.named_groups import NamedGroups
from lightning_rebasin.symmetry.permutations.rules.base import Context
from lightning_rebasin.symmetry.trace.tape import Node, Ref, references


@final
@dataclass(frozen=True)
class Seat:
    """Where a value carries a group.

    Args:
        dims: Dimensions along which its units stand.
        axes: On how many separate axes (parts of the label) they stand.
        whole: Whether all units are there, each equally often.
    """

    dims: frozenset[int]
    axes: int = 1
    whole: bool = True

    def beside(self, other: Seat) -> Seat:
        """Both seats of one value."""
        return Seat(
            self.dims | other.dims,
            self.axes + other.axes,
            self.whole and other.whole,
        )


@final
@dataclass(frozen=True)
class Met:
    """An operation, and the values of its tensor arguments with numbers that count."""

    node: Node
    operands: tuple[int, ...]


@final
class Carrying:
    """Seats of groups in the values of one tape.

    Args:
        named: The groups.
        ctx: The last pass of the first analysis over the tape.
    """

    def __init__(self, named: NamedGroups, ctx: Context) -> None:
        self._named = named
        self._ctx = ctx
        self._found: dict[int, Mapping[str, Seat]] = {}
        self._touching: dict[str, list[Met]] | None = None
        #: By the number of the object that holds the elements of a part, which is kept so that the number stays its.
        self._on_elements: dict[int, tuple[Elements, dict[str, bool]]] = {}

    def touching(self, group: str) -> Sequence[Met]:
        """The live operations of which an operand or a result carries a group, in order."""
        if self._touching is None:
            # Once for all groups: every walk of a group only sees its own operations.
            self._touching = self._by_group()
        return self._touching.get(group, ())

    def _by_group(self) -> dict[str, list[Met]]:
        found: dict[str, list[Met]] = {}
        tape = self._ctx.tape
        for node in tape.live_nodes()[0]:
            operands = []
            for ref in references(node.arguments):
                # Integers are indices and masks; a cache is empty before its first key comes to it.
                value = tape.values[ref.value]
                if not value.integral and 0 not in value.shape:
                    operands.append(ref.value)
            met = Met(node, tuple(operands))
            groups: dict[str, None] = {}
            for number in (*operands, *node.outputs):
                groups.update(dict.fromkeys(self.of(number)))
            for group in groups:
                found.setdefault(group, []).append(met)
        return found

    def of(self, value: int) -> Mapping[str, Seat]:
        """For each group that a value carries, where."""
        if value not in self._found:
            label = self._ctx.label(Ref(value))
            self._found[value] = self._seats(label)
        return self._found[value]

    def _seats(self, label: Label) -> dict[str, Seat]:
        found: dict[str, Seat] = {}
        for part in label.parts:
            dims = frozenset(
                dim
                for dim, sites in enumerate(label.dims)
                if part.touches(sites)
            )
            known_groups = self._on_elements.get(id(part.elements))
            if known_groups is None:
                # Most values have the elements of the value that they were made of.
                known_groups = (part.elements, self._groups_on(part))
                self._on_elements[id(part.elements)] = known_groups
            for group, whole in known_groups[1].items():
                seat = Seat(dims, 1, whole)
                known = found.get(group)
                found[group] = seat if known is None else known.beside(seat)
        return found

    def _groups_on(self, part: Part) -> dict[str, bool]:
        """Groups of which units stand on a part, and whether all of them do."""
        named = self._named
        cells = named.cells_on(part)
        flat = part.elements.ids.reshape(-1)
        found: dict[str, bool] = {}
        for cell in named.groups_on(part):
            members = named.members(flat[cells == cell])
            count = len(named.found.cells[cell].members)
            often = np.bincount(members, minlength=count)
            found[named.groups[cell].id] = bool((often == often[0]).all())
        for cell in named.following_on(part):
            # Units that follow several groups, such as the columns of heads × dims: they stand there for all of them.
            for number in named.shared.groups_of(cell):
                if number in named.groups:
                    found.setdefault(named.groups[number].id, True)
        return found
