"""Gains of norms on the way of one group: what is added behind them, and what reads them.

A gain multiplies the coordinates of a vector one by one, so that no matrix commutes with it.  If everything that reads
it is a weight, and that weight is used in no other way, the gain can be folded into these weights and is 1.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final

from lightning_rebasin.symmetry.continuous.operations import Limit
from lightning_rebasin.symmetry.spec.folds import Fold, Reader


@final
@dataclass
class _Gain:
    """One gain, what is added behind it, and what reads it."""

    shift: str = ""
    readers: dict[str, Reader] = field(default_factory=dict)


@final
class Gains:
    """All gains that one group meets, and how the tensors of the state are used."""

    def __init__(self) -> None:
        self._gains: dict[str, _Gain] = {}
        #: How each tensor is used: plainly (""), or as a reader of a gain.
        self._uses: dict[str, dict[str, str]] = {}

    def begin(self, gain: str) -> None:
        """A tensor of the state multiplies the coordinates.

        Raises:
            Limit: It does so twice.
        """
        if gain in self._gains:
            raise Limit(f"the gain {gain!r} is used twice")
        self._gains[gain] = _Gain()

    def shift(self, gain: str, shift: str, where: str) -> None:
        """A tensor of the state is added behind a gain."""
        self._gains[gain].shift = shift
        self.use(shift, where, gain)

    def read(self, gain: str, reader: Reader, where: str) -> None:
        """A weight reads what a gain multiplies.

        Raises:
            Limit: The weight reads it twice, with different biases: a shift would have to go into both.
        """
        self.use(reader.weight, where, gain)
        readers = self._gains[gain].readers
        known = readers.setdefault(reader.weight, reader)
        if known != reader:
            raise Limit(
                f"the gain {gain!r} cannot be folded: {reader.weight!r} reads it in two ways, the second at {where}"
            )

    def use(self, weight: str, where: str, gain: str = "") -> None:
        """A tensor of the state is used, plainly or as a reader of a gain."""
        if weight:
            self._uses.setdefault(weight, {}).setdefault(gain, where)

    def check(self) -> None:
        """A weight into which a gain is folded must not be used in any other way.

        Raises:
            Limit: One is.
        """
        for name, uses in self._uses.items():
            gains = [gain for gain in uses if gain]
            if gains and len(uses) > 1:
                other = next(uses[use] for use in uses if use != gains[0])
                raise Limit(
                    f"the gain {gains[0]!r} cannot be folded into {name!r}, which is also used at {other}",
                    weight=name,
                )
        for gain in self._gains:
            if gain in self._uses:
                raise Limit(f"the gain {gain!r} is also used in another way")

    def folds(self) -> tuple[Fold, ...]:
        """What has to be folded."""
        found = []
        for name, gain in self._gains.items():
            readers = tuple(gain.readers.values())
            found.append(Fold(name, gain.shift or None, readers))
        return tuple(found)
