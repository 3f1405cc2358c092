"""Aligning: the dimensions that run together get the same sites in every operand.

The operands of an operation name their dimensions with *letters*, as in an einsum.  A letter may have one site of size
6 in one operand (the columns of a 2×6 weight) and two sites of sizes 2 and 3 in another (a flattened 2×3 tensor).  Then
the site of size 6 is split into 2×3.  Where the sizes do not divide each other, 2×3 against 3×2, both operands fuse
their sites to one of size 6.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import final

from lightning_rebasin.symmetry.permutations.elements import Constraints
from lightning_rebasin.symmetry.permutations.label_views import fuse_sites
from lightning_rebasin.symmetry.permutations.labels import (
    Label,
    Sites,
    split_site,
)

#: Names a dimension: dimensions of several operands with the same letter run together.
Letter = Hashable
#: Row-major sizes of the sites of a letter.
Factors = tuple[int, ...]


@final
@dataclass(frozen=True)
class Operand:
    """One tensor taking part in an operation and the letters of its dimensions."""

    label: Label
    letters: tuple[Letter, ...]

    def sites_of(self, letter: Letter) -> Sites:
        """Sites of a letter in this operand; none where it broadcasts."""
        if letter not in self.letters:
            return ()
        dim = self.letters.index(letter)
        return self.label.dims[dim]

    def factors_of(self, letter: Letter) -> Factors:
        """Sizes of these sites."""
        sites = self.sites_of(letter)
        return self.label.sizes_of(sites)

    def numbers_in(self, common: Mapping[Letter, Sites]) -> dict[int, int]:
        """For each site of the operand its number among common sites.

        Args:
            common: For each letter the numbers of its sites in all operands together.
        """
        number: dict[int, int] = {}
        for letter, own in zip(self.letters, self.label.dims, strict=True):
            # An operand of size 1 has no site where others have some.
            if own:
                number.update(zip(own, common[letter], strict=True))
        return number


@final
@dataclass(frozen=True)
class Aligned:
    """Operands that agree about the sites of every letter, and the sizes of these sites."""

    operands: list[Operand]
    factors: dict[Letter, Factors]


def align(
    store: Constraints, operands: Sequence[Operand], letters: Iterable[Letter]
) -> Aligned:
    """Split the sites of every letter until all operands agree.

    Args:
        store: Receives the constraints where sites must be fused first.
        operands: The operands.
        letters: All letters.

    Returns:
        The operands with new labels, and for each letter the sizes of its sites.
    """
    aligned = list(operands)
    factors: dict[Letter, Factors] = {}
    for letter in letters:
        layouts = _layouts(aligned, letter)
        common = layouts[0]
        if len(layouts) > 1:
            common = common_factors(layouts) or (math.prod(common),)
            aligned = [
                _with_factors(store, operand, letter, common)
                for operand in aligned
            ]
        factors[letter] = common
    return Aligned(aligned, factors)


def _layouts(operands: Iterable[Operand], letter: Letter) -> list[Factors]:
    """The factors that operands have for a letter, each once."""
    found = [operand.factors_of(letter) for operand in operands]
    # Where an operand broadcasts it has no factors, and any layout suits it.
    layouts = dict.fromkeys(factors for factors in found if factors)
    return list(layouts) or [()]


def common_factors(layouts: Iterable[Sequence[int]]) -> Factors | None:
    """The coarsest factors that all layouts can be split into, or ``None``.

    Args:
        layouts: Row-major factors of one size.

    Example:
        >>> common_factors([(12,), (2, 6), (4, 3)])
        (2, 2, 3)
        >>> common_factors([(2, 3), (3, 2)]) is None
        True
    """
    # A boundary is how many positions lie to the right of a cut between two factors.
    boundaries = {1}
    for factors in layouts:
        positions = 1
        for factor in reversed(factors):
            positions *= factor
            boundaries.add(positions)
    common = []
    for inner, outer in pairwise(sorted(boundaries)):
        if outer % inner != 0:
            return None
        common.append(outer // inner)
    return tuple(reversed(common))


def _with_factors(
    store: Constraints, operand: Operand, letter: Letter, common: Factors
) -> Operand:
    """The operand with sites of the sizes ``common`` for a letter."""
    sites = operand.sites_of(letter)
    if not sites:
        return operand
    label = operand.label
    remaining = list(common)
    if len(common) == 1:
        label = fuse_sites(label, sites[0], len(sites), store)
        return replace(operand, label=label)
    # From the last site to the first, so that the numbers of those still to do stay.
    for site in reversed(sites):
        own: list[int] = []
        while math.prod(own) < label.sizes[site]:
            own.insert(0, remaining.pop())
        label = split_site(label, site, own)
    return replace(operand, label=label)
