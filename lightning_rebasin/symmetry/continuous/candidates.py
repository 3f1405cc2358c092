"""What may be more than a permutation: proposals for each group, the largest first.

A proposal is a change of the permutation spec (:mod:`.enlarge`).  None of them is handed out before the gate has seen
random elements of it; if it refuses one, the next is tried, and at last the group stays a permutation.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import final

from lightning_rebasin.symmetry.continuous.carrying import Carrying
from lightning_rebasin.symmetry.continuous.exponents import (
    ExponentWalk,
    NumberKind,
)
from lightning_rebasin.symmetry.continuous.heads import block_groups
from lightning_rebasin.symmetry.continuous.mixing import Mixing, find_mixing
from lightning_rebasin.symmetry.continuous.operations import Limit
from lightning_rebasin.symmetry.permutations.named_groups import NamedGroups
from lightning_rebasin.symmetry.permutations.rules.base import Context
from lightning_rebasin.symmetry.spec.folds import Fold
from lightning_rebasin.symmetry.spec.json import POWERS
from lightning_rebasin.symmetry.spec.spec import PermutationSpec
from lightning_rebasin.symmetry.spec.values import Group
from lightning_rebasin.symmetry.trace.tape import Tape

Tapes = Sequence[tuple[Tape, Carrying]]
#: How often an element acts on a tensor: alike on all copies of the units, or on each.
Powers = int | tuple[int, ...]
#: Matrices of up to this many numbers cost nothing, whatever they act on.
SMALL = 2**16
#: Kinds whose elements mix units, and the smaller kinds that each contains.
SMALLER = {
    "linear": ("linear", "orthogonal"),
    "orthogonal": ("orthogonal",),
    "orthogonal_mean": ("orthogonal_mean",),
}


@final
@dataclass(frozen=True)
class Candidate:
    """One proposal for one group.

    Args:
        group: Id of the permutation group.
        kind: The kind that its units get.
        powers: For each tensor how often an element acts on it, or on each copy of the units in it.
        inside: Whether the permutation stays, and every unit gets an element of its own inside it.
        folds: Gains that have to be folded before.
        centred: Whether nothing sees the mean along the units.
    """

    group: str
    kind: str
    powers: Mapping[str, Powers]
    inside: bool = False
    folds: tuple[Fold, ...] = ()
    centred: bool = False


@final
@dataclass
class Proposals:
    """For each group its candidates, the largest first, and why there is no larger one.

    Args:
        candidates: The candidates by group.
        limits: Why there is no larger one, by group.
        blocked: The weight whose two uses are why, by group.
    """

    candidates: dict[str, list[Candidate]] = field(default_factory=dict)
    limits: dict[str, str] = field(default_factory=dict)
    blocked: dict[str, str] = field(default_factory=dict)


def propose(
    spec: PermutationSpec,
    named: NamedGroups,
    passes: Sequence[Context],
    kinds: Collection[str],
) -> Proposals:
    """Propose larger kinds for the groups of a spec.

    Args:
        spec: Permutations only.
        named: Its groups, as the first analysis knows them.
        passes: The first analysis' last pass over each tape.
        kinds: Which kinds are wanted.
    """
    tapes = [(ctx.tape, Carrying(named, ctx)) for ctx in passes]
    found = Proposals()
    for group in spec.groups.values():
        # Groups that order blocks of other groups do not act on numbers themselves.
        if spec.children(group.id) or not spec.tensors_of(group.id):
            continue
        candidates: list[Candidate] = []
        try:
            mixing = find_mixing(group, spec.maps, tapes)
            _check_size(spec, group)
            candidates += _mixing(group, mixing, kinds)
            if mixing.limit:
                found.limits[group.id] = mixing.limit
        except Limit as limit:
            if not _orders_blocks(spec, group):
                found.limits[group.id] = str(limit)
            if limit.weight:
                found.blocked[group.id] = limit.weight
        # Matrices contain the numbers.
        if not candidates:
            candidates = _numbers(group, tapes, kinds)
        if candidates:
            found.candidates[group.id] = candidates
    return found


def _orders_blocks(spec: PermutationSpec, group: Group) -> bool:
    """Whether the members of a group are blocks of units wherever they stand: nobody expects to mix heads."""
    for name in spec.tensors_of(group.id):
        axis_map = spec.maps[name]
        for dim in axis_map.dims_of(group.id):
            if group.id not in block_groups(spec, name, dim):
                return False
    return True


def _check_size(spec: PermutationSpec, group: Group) -> None:
    """Raise unless the matrices of a group are small, or no larger than all the weights that they act on.

    Raises:
        Limit: Two maps of 10 numbers with 5000 units between them do not have 25 million degrees of freedom.
    """
    numbers = group.members * group.size
    weights = 0
    for name in spec.tensors_of(group.id):
        weights += math.prod(spec.tensors[name].shape)
    if numbers > max(weights, SMALL):
        raise Limit(
            f"its matrices would hold {numbers} numbers, more than the {weights} of the weights they act on"
        )


def _mixing(
    group: Group, mixing: Mixing, kinds: Collection[str]
) -> list[Candidate]:
    """The kind that was found and the smaller ones, as far as they are wanted."""
    found = []
    for kind in SMALLER[mixing.kind]:
        if kind in kinds:
            found.append(
                Candidate(
                    group.id,
                    kind,
                    mixing.powers,
                    folds=mixing.folds,
                    centred=mixing.centred,
                )
            )
    return found


def _numbers(
    group: Group, tapes: Tapes, kinds: Collection[str]
) -> list[Candidate]:
    """Any number but 0 inside each unit, or a scale, or a sign."""
    exponents: dict[str, dict[str, int]] = {}
    wanted: tuple[NumberKind, ...] = ("scale", "sign")
    for kind in wanted:
        if kind in kinds:
            powers = _exponents(group, tapes, kind)
            if powers:
                exponents[kind] = powers
    found = []
    if "linear" in kinds and _is_any_number(exponents):
        powers = exponents["scale"]
        number = Candidate(group.id, "linear", powers, inside=True)
        found.append(number)
    # Of several the one that moves most tensors; they cannot stand in one place together.
    by_support = sorted(exponents.items(), key=lambda item: -len(item[1]))
    for name, powers in by_support:
        candidate = Candidate(group.id, name, powers, inside=True)
        found.append(candidate)
    return found


def _exponents(group: Group, tapes: Tapes, kind: NumberKind) -> dict[str, int]:
    """How often a number inside each unit acts on each tensor; empty if there is none."""
    best: dict[str, int] = {}
    walk = ExponentWalk(group, kind)
    for solution in walk.walk(tapes):
        powers = _whole(solution)
        # Of several the one that moves most: signs of a whole stream before those of one norm's gain.
        if len(powers) > len(best):
            best = powers
    return best


def _is_any_number(exponents: Mapping[str, dict[str, int]]) -> bool:
    """Whether scale and sign have the same exponents: together they are a number other than 0."""
    scale, sign = exponents.get("scale"), exponents.get("sign")
    if not scale or not sign:
        return False
    return _simple(scale) and _odd(scale) == set(sign)


def _whole(solution: dict[str, Fraction]) -> dict[str, int]:
    """Exponents as whole numbers without a common factor, the first one positive; empty if they are too large."""
    if not solution:
        return {}
    smallest = min(abs(e) for e in solution.values())
    first = next(iter(solution.values()))
    scale = (1 if first > 0 else -1) / smallest
    scaled = {name: e * scale for name, e in solution.items()}
    if any(
        e.denominator != 1 or int(e) not in POWERS for e in scaled.values()
    ):
        return {}
    return {name: int(e) for name, e in scaled.items()}


def _odd(powers: dict[str, int]) -> set[str]:
    return {name for name, power in powers.items() if power % 2}


def _simple(powers: dict[str, int]) -> bool:
    return all(abs(power) == 1 for power in powers.values())
