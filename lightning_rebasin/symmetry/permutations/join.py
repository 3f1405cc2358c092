"""Joining labels: the one rule behind nearly every operation.

Operands name their dimensions with *letters*, as in an einsum.  Dimensions with the same letter run together: their
sites are split until they agree, elements at the same place are equated, a part over fewer sites becomes the parent of
one over more, and a pinned site pins the parts of the others.  Contracted letters are then reduced: a part that lies
within them is marked as a set, a part that straddles them is projected to its blocks.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from lightning_rebasin.symmetry.permutations.elements import Constraints, Elements
from lightning_rebasin.symmetry.permutations.labels import (
    Label,
    Part,
    canonical,
    fuse_sites,
    split_site,
)

Letter = Hashable


@dataclass(frozen=True)
class Refinement:
    """A wish: the axis of ``inner`` should be ordered separately for each of the leading ``blocks`` of ``outer``.

    With ``stack`` it is only granted to tensors of three or more dimensions, to an inner axis behind the outer one.
    """

    inner: Elements
    outer: Elements
    blocks: int
    stack: bool = False


@dataclass
class Wishes:
    """Refinements asked for during a pass over the trace; the next pass grants them."""

    found: dict[tuple[bytes, bytes, int], Refinement] = field(default_factory=dict)

    def ask(self, inner: Elements, outer: Elements, blocks: int, *, stack: bool = False) -> None:
        """Ask that ``inner`` depend on the blocks of ``outer``."""
        key = (inner.key, outer.key, blocks)
        if not stack or key not in self.found:
            self.found[key] = Refinement(inner, outer, blocks, stack)


@dataclass
class Operand:
    """One tensor taking part in a merge and the letters of its dimensions (``None`` for a dimension of size 1)."""

    label: Label
    letters: tuple[Letter, ...]

    def sites_of(self, letter: Letter) -> tuple[int, ...]:
        """Sites of a letter in this operand."""
        return self.label.dims[self.letters.index(letter)] if letter in self.letters else ()


def merge(
    store: Constraints,
    operands: Sequence[tuple[Label, Sequence[Letter]]],
    out: Sequence[Letter],
    *,
    batch: Collection[Letter] = (),
    wishes: Wishes | None = None,
) -> Label:
    """Join labels like an einsum over letters; letters missing from ``out`` are reduced.

    Args:
        store: Receives the constraints.
        operands: Labels with one letter per dimension.
        out: Letters of the result.
        batch: Letters that stack independent problems: a parameter's axes may depend on them.
        wishes: Receives requests for finer parameter axes.

    Returns:
        The label of the result.
    """
    joined = [Operand(canonical(label, store), tuple(letters)) for label, letters in operands]
    letters = list(dict.fromkeys([*out, *(x for o in joined for x in o.letters)]))
    sizes = _align(store, joined, letters)
    number: dict[tuple[Letter, int], int] = {}
    for letter in letters:
        for k in range(len(sizes[letter])):
            number[letter, k] = len(number)
    parts, pinned, pending = _globalise(joined, number)
    if wishes is not None:
        batch_sites = {n for (letter, _), n in number.items() if letter in batch}
        summed = {n for (letter, _), n in number.items() if letter not in set(out)}
        _wish(wishes, parts, batch_sites, summed)
    all_sizes = [size for letter in letters for size in sizes[letter]]
    for elements in pending:
        store.pin(elements, "it is picked out by itself")
    inside: list[Part] = []
    merged = _combine(store, [p for own in parts for p in own], pinned, all_sizes, inside)
    reduced = {n for (letter, _), n in number.items() if letter not in set(out)}
    # parts inside others are cut into blocks too, so that the blocks of both are known to fit (grouped queries)
    straddling = [
        p for p in inside if reduced.intersection(p.sites) and not reduced.issuperset(p.sites)
    ]
    merged = reduce_sites(store, [*merged, *straddling], reduced)
    kept = [n for n in range(len(all_sizes)) if n not in reduced]
    new = {n: i for i, n in enumerate(kept)}
    return Label(
        tuple(tuple(new[number[x, k]] for k in range(len(sizes[x]))) for x in out),
        tuple(all_sizes[n] for n in kept),
        tuple(Part(tuple(new[s] for s in p.sites), p.elements) for p in merged),
        frozenset(new[s] for s in pinned if s in new),
    )


def combine_label(store: Constraints, label: Label) -> Label:
    """Relate the overlapping parts of one label (a parameter whose axes depend on each other)."""
    return replace(
        label, parts=tuple(_combine(store, list(label.parts), set(label.pinned), list(label.sizes)))
    )


def _align(
    store: Constraints, operands: list[Operand], letters: list[Letter]
) -> dict[Letter, tuple[int, ...]]:
    """Split the sites of every letter until all operands agree; returns the sizes of its sites."""
    result: dict[Letter, tuple[int, ...]] = {}
    for letter in letters:
        having = [o for o in operands if o.sites_of(letter)]
        layouts = {tuple(o.label.sizes[s] for s in o.sites_of(letter)) for o in having}
        if len(layouts) > 1:
            common = _common_factors(layouts)
            if common is None:
                for o in having:
                    _fuse_letter(store, o, letter)
                common = (math.prod(next(iter(layouts))),)
            for o in having:
                _split_letter(o, letter, common)
            layouts = {common}
        result[letter] = next(iter(layouts)) if layouts else ()
    return result


def _common_factors(layouts: Iterable[tuple[int, ...]]) -> tuple[int, ...] | None:
    """The coarsest factors that all layouts can be split into, or ``None``."""
    boundaries = sorted({math.prod(sizes[k:]) for sizes in layouts for k in range(len(sizes) + 1)})
    if any(b % a for a, b in pairwise(boundaries)):
        return None
    return tuple(b // a for a, b in pairwise(boundaries))[::-1]


def _fuse_letter(store: Constraints, operand: Operand, letter: Letter) -> None:
    sites = operand.sites_of(letter)
    operand.label = fuse_sites(_contiguous(operand.label, sites), sites[0], len(sites), store)


def _contiguous(label: Label, sites: tuple[int, ...]) -> Label:
    if sites != tuple(range(sites[0], sites[0] + len(sites))):
        raise AssertionError(f"sites {sites} of one dimension are not consecutive")
    return label


def _split_letter(operand: Operand, letter: Letter, common: tuple[int, ...]) -> None:
    """Split the sites of a letter into the ``common`` factors."""
    remaining = list(common)
    position = 0
    while position < len(operand.sites_of(letter)):
        site = operand.sites_of(letter)[position]
        size = operand.label.sizes[site]
        factors: list[int] = []
        while math.prod(factors) < size:
            factors.append(remaining.pop(0))
        operand.label = split_site(operand.label, site, factors)
        position += len(factors)


def _globalise(
    operands: list[Operand], number: dict[tuple[Letter, int], int]
) -> tuple[list[list[Part]], set[int], list[Elements]]:
    """Parts of every operand, pinned sites and pending elements in terms of the common site numbers."""
    parts: list[list[Part]] = []
    pinned: set[int] = set()
    pending: list[Elements] = []
    for operand in operands:
        to_global = {
            site: number[letter, k]
            for letter, sites in zip(operand.letters, operand.label.dims, strict=True)
            for k, site in enumerate(sites)
        }
        parts.append([_renumber(p, to_global) for p in operand.label.parts])
        pinned |= {to_global[s] for s in operand.label.pinned}
        pending += operand.label.pending
    return parts, pinned, pending


def _renumber(part: Part, to_global: dict[int, int]) -> Part:
    new = [to_global[s] for s in part.sites]
    axes = sorted(range(len(new)), key=new.__getitem__)
    if axes == list(range(len(axes))):
        return Part(tuple(new), part.elements)
    return Part(tuple(sorted(new)), Elements(part.elements.ids.transpose(axes)))


def _wish(wishes: Wishes, parts: list[list[Part]], batch: set[int], summed: set[int]) -> None:
    """Ask for finer axes where an operand's axes are independent but the operation stacks them.

    Either a letter is a batch letter of the operation, or another operand's part spans both axes, or both axes are
    contracted together (a mixture of experts).
    """
    spanning = [set(p.sites) for own in parts for p in own if len(p.sites) > 1]
    for own in parts:
        for outer in own:
            stack = [
                n for s, n in zip(outer.sites, outer.elements.shape, strict=True) if s in batch
            ]
            for inner in own:
                if set(inner.sites) & set(outer.sites):
                    continue
                if stack and not set(inner.sites) & batch:
                    wishes.ask(inner.elements, outer.elements, math.prod(stack))
                elif any(set(inner.sites) | set(outer.sites) <= s for s in spanning):
                    wishes.ask(inner.elements, outer.elements, outer.elements.ids.size)
                elif len(parts) > 1 and summed.issuperset({*inner.sites, *outer.sites}):
                    wishes.ask(inner.elements, outer.elements, outer.elements.ids.size, stack=True)


def _combine(
    store: Constraints,
    parts: list[Part],
    pinned: set[int],
    sizes: list[int],
    inside: list[Part] | None = None,
) -> list[Part]:
    """Equate and relate parts over the same sites; apply pins; parts within others go to ``inside``."""
    by_sites: dict[tuple[int, ...], Elements] = {}
    for part in parts:
        known = by_sites.get(part.sites)
        by_sites[part.sites] = part.elements if known is None else store.equal(known, part.elements)
    for alone in [s for s in by_sites if len(s) == 1 and s[0] in pinned]:
        store.pin(
            by_sites.pop(alone),
            f"it meets a dimension of size {sizes[alone[0]]} whose order is fixed",
        )
    for sites, elements in by_sites.items():
        for site in pinned.intersection(sites):
            store.position(elements, sites.index(site), "it meets a dimension whose order is fixed")
    ordered = sorted(by_sites, key=lambda s: (-len(s), s))
    dropped: set[tuple[int, ...]] = set()
    for i, big in enumerate(ordered):
        for small in ordered[i + 1 :]:
            shared = sorted(set(big) & set(small))
            if not shared or small in dropped:
                continue
            axes = tuple(big.index(s) for s in shared)
            if set(small) <= set(big):
                store.relation(store.canonical(by_sites[big]), by_sites[small], axes)
                dropped.add(small)
                if inside is not None:
                    inside.append(Part(small, by_sites[small]))
            else:
                theirs = tuple(small.index(s) for s in shared)
                store.equal(
                    store.project(by_sites[big], axes), store.project(by_sites[small], theirs)
                )
    return [Part(s, store.canonical(e)) for s, e in by_sites.items() if s not in dropped]


def reduce_sites(
    store: Constraints, parts: list[Part], reduced: set[int], *, keep: bool = False
) -> list[Part]:
    """Reduce some sites: parts inside are marked, parts that straddle are projected to their blocks.

    Args:
        store: Receives the constraints.
        parts: Parts of the tensor.
        reduced: Sites to reduce.
        keep: The dimensions stay (softmax, normalisation): the blocks are related, the parts stay.
    """
    result: dict[tuple[int, ...], Elements] = {}
    for part in parts:
        rest = tuple(s for s in part.sites if s not in reduced)
        if rest == part.sites:
            target, elements = part.sites, part.elements
        elif not rest:
            store.mark(part.elements)
            target, elements = part.sites, part.elements
            if not keep:
                continue
        else:
            axes = tuple(part.sites.index(s) for s in rest)
            blocks = store.project(part.elements, axes, commit=keep)
            target, elements = (part.sites, part.elements) if keep else (rest, blocks)
        known = result.get(target)
        result[target] = elements if known is None else store.equal(known, elements)
    if keep:
        return parts
    return _combine(store, [Part(s, e) for s, e in result.items()], set(), [])
