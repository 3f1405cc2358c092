"""Gains on the way of one group: what is added behind them, and what reads or writes what they multiply.

A gain multiplies the coordinates of a vector one by one, so that no matrix commutes with it.  It can be folded away, so
that it is 1:

- into its *readers*, if everything that reads it is a weight: the gain of a norm before linear layers;
- into its *writers*, if a linear layer writes what it multiplies: a LayerScale at the end of a branch.

Either way these weights may be used in no other way.  A gain may be stored as its distance from a number, its *offset*:
some norms multiply with ``1 + w``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import final

from lightning_rebasin.symmetry.continuous.operations import Limit
from lightning_rebasin.symmetry.spec.folds import Fold, Reader


@final
@dataclass
class _Gain:
    """One gain, what is added behind it, and the weights into which it goes; and how often that was so."""

    offset: float = 0.0
    shift: str = ""
    into: dict[str, Reader] = field(default_factory=dict)
    met: int = 0
    shifted: int = 0
    written: int = 0


@final
class Gains:
    """All gains that one group meets, and how the tensors of the state are used."""

    def __init__(self) -> None:
        self._gains: dict[str, _Gain] = {}
        #: How each tensor is used: plainly (""), or as a reader of a gain.
        self._uses: dict[str, dict[str, str]] = {}
        #: How often each tensor is used plainly, and how often of these as the writer of a gain.
        self._plain: Counter[str] = Counter()
        self._writing: Counter[str] = Counter()

    def begin(self, gain: str, offset: float = 0.0) -> None:
        """A tensor of the state multiplies the coordinates, perhaps at several places and in several examples.

        Args:
            gain: The tensor.
            offset: What is added to it before.

        Raises:
            Limit: Another number is added to it elsewhere.
        """
        known = self._gains.setdefault(gain, _Gain(offset))
        if known.offset != offset:
            raise _differs(gain)
        known.met += 1

    def shift(self, gain: str, shift: str, where: str) -> None:
        """A tensor of the state is added behind a gain.

        Raises:
            Limit: Another tensor is added behind it elsewhere.
        """
        known = self._gains[gain]
        if known.shift not in ("", shift):
            raise _differs(gain)
        known.shift = shift
        known.shifted += 1
        self.use(shift, where, gain)

    def read(self, gain: str, reader: Reader, where: str) -> None:
        """A weight reads what a gain multiplies.

        Raises:
            Limit: The weight reads it twice, with different biases: a shift would have to go into both.
        """
        self.use(reader.weight, where, gain)
        readers = self._gains[gain].into
        known = readers.setdefault(reader.weight, reader)
        if known != reader:
            raise Limit(
                f"the gain {gain!r} cannot be folded: {reader.weight!r} reads it in two ways, the second at {where}"
            )

    def written(self, gain: str, writers: Iterable[Reader]) -> None:
        """A layer writes what a gain multiplies, and nothing else multiplies or reads before that.

        Args:
            gain: The gain.
            writers: The weight and the bias beside it, and the dimensions along which the coordinates stand.
        """
        known = self._gains[gain]
        known.written += 1
        for writer in writers:
            known.into[writer.weight] = writer
            self._writing[writer.weight] += 1

    def use(self, weight: str, where: str, gain: str = "") -> None:
        """A tensor of the state is used, plainly or as a reader of a gain."""
        if weight:
            self._uses.setdefault(weight, {}).setdefault(gain, where)
            self._plain[weight] += not gain

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
        for gain, known in self._gains.items():
            if gain in self._uses:
                raise Limit(f"the gain {gain!r} is also used in another way")
            always = {known.shifted, known.written} <= {0, known.met}
            if not always:
                raise _differs(gain)
            for name in known.into:
                self._check_writer(gain, name)

    def _check_writer(self, gain: str, name: str) -> None:
        """A layer that writes something else as well would be scaled there, too."""
        times = self._writing[name]
        if times and times != self._plain[name]:
            raise Limit(
                f"the gain {gain!r} cannot be folded into {name!r}, which writes something else as well",
                weight=name,
            )

    def folds(self) -> tuple[Fold, ...]:
        """What has to be folded."""
        found = []
        for name, gain in self._gains.items():
            into = tuple(gain.into.values())
            found.append(Fold(name, gain.shift or None, into, gain.offset))
        return tuple(found)


def _differs(gain: str) -> Limit:
    return Limit(
        f"the gain {gain!r} cannot be folded: what stands around it differs from place to place"
    )
