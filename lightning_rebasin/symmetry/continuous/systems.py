"""Small exact systems of equations: parities, and linear equations over ℚ and over the integers modulo 2."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from fractions import Fraction
from typing import final

#: What an unknown stands for: a value of a tape, or a tensor of the state.
Key = Hashable


@final
class Parities:
    """Things that change alike or oppositely: a forest in which every edge has a sign.

    Example:
        >>> parities = Parities()
        >>> parities.tie("writer", "value", 1), parities.tie("value", "reader", -1)
        (True, True)
        >>> parities.sign("reader") * parities.sign("writer")
        -1
        >>> parities.tie("writer", "reader", 1)
        False
    """

    def __init__(self) -> None:
        self._above: dict[Key, tuple[Key, int]] = {}

    def root(self, key: Key) -> tuple[Key, int]:
        """The representative of a thing, and its sign against it."""
        sign = 1
        while key in self._above:
            key, step = self._above[key]
            sign *= step
        return key, sign

    def sign(self, key: Key) -> int:
        """The sign against the representative."""
        return self.root(key)[1]

    def tie(self, first: Key, second: Key, sign: int) -> bool:
        """Say that two things change alike (+1) or oppositely (−1); whether that contradicts nothing said before."""
        (a, sign_a), (b, sign_b) = self.root(first), self.root(second)
        if a == b:
            return sign_a == sign * sign_b
        self._above[a] = (b, sign_a * sign * sign_b)
        return True


@final
class Equations:
    """Homogeneous linear equations, reduced as they come.

    Args:
        modulo: 2 for equations over the integers modulo 2; 0 for the rational numbers.

    Example:
        >>> system = Equations()
        >>> system.add({"in": 1, "out": 1})  # what is written times c, what is read divided by c
        >>> system.add({"bias": 1, "in": -1})
        >>> system.solutions(["in", "bias", "out"])
        [{'in': Fraction(1, 1), 'bias': Fraction(1, 1), 'out': Fraction(-1, 1)}]
    """

    def __init__(self, modulo: int = 0) -> None:
        self._modulo = modulo
        #: For each solved unknown, what it is in terms of others.
        self._solved: dict[Key, dict[Key, Fraction]] = {}

    def add(self, row: Mapping[Key, int | Fraction]) -> None:
        """Add ``Σ coefficient · unknown = 0``."""
        reduced = self._in_free_terms(row)
        if not reduced:
            return
        pivot, factor = next(iter(reduced.items()))
        rest = {}
        for key, coefficient in reduced.items():
            if key != pivot:
                rest[key] = self._number(-coefficient / factor)
        self._solved[pivot] = rest

    def zero(self, key: Key) -> None:
        """Say that an unknown is 0."""
        self.add({key: 1})

    def is_zero(self, key: Key) -> bool:
        """Whether an unknown can only be 0."""
        return not self._in_free_terms({key: 1})

    def solutions(self, keys: list[Key]) -> list[dict[Key, Fraction]]:
        """A basis of the solutions, restricted to some unknowns; solutions that vanish there are left out.

        Args:
            keys: The unknowns that are asked for.
        """
        terms = {key: self._in_free_terms({key: 1}) for key in keys}
        free: dict[Key, None] = {}
        for row in terms.values():
            free.update(dict.fromkeys(row))
        found = []
        for unknown in free:
            solution = {}
            for key, row in terms.items():
                if unknown in row:
                    solution[key] = row[unknown]
            found.append(solution)
        return found

    def _number(self, value: int | Fraction) -> Fraction:
        number = Fraction(value)
        if self._modulo:
            # Only odd denominators appear modulo 2.
            numerator = number.numerator * number.denominator
            return Fraction(numerator % self._modulo)
        return number

    def _in_free_terms(
        self, row: Mapping[Key, int | Fraction]
    ) -> dict[Key, Fraction]:
        """A row in which no solved unknown is left."""
        pending = [(key, self._number(value)) for key, value in row.items()]
        found: dict[Key, Fraction] = {}
        while pending:
            key, value = pending.pop()
            if key in self._solved:
                for other, factor in self._solved[key].items():
                    pending.append((other, self._number(value * factor)))
                continue
            found[key] = self._number(found.get(key, Fraction(0)) + value)
        return {key: value for key, value in found.items() if value}
