"""Which groups of units the values of a tape carry, and along which dimensions.

The label of a value says which elements stand along its sites; elements belong to cells, cells are groups.  A value
*carries* a group if units of it stand along some of its sites.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import numpy as np

from lightning_rebasin.symmetry.permutations.labels import Label, Part
from lightning_rebasin.symmetry.permutations.named_groups import NamedGroups
from lightning_rebasin.symmetry.permutations.rules.base import Context
from lightning_rebasin.symmetry.trace.tape import Ref


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
            for group, whole in self._groups_on(part).items():
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
