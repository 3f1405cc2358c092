"""Joining labels: the one rule behind nearly every operation.

Operands name their dimensions with *letters*, as in an einsum.  Dimensions with the same letter run together: their
sites are split until they agree, elements at the same place are equated, a part over fewer sites becomes the parent of
one over more, and a pinned site pins the parts of the others.  Contracted letters are then reduced: a part that lies
within them is marked as a set, a part that straddles them is projected to its blocks.

``x @ w.T`` for a 2×3 weight ``w`` with rows ``[0, 1]`` and columns ``[2, 3, 4]``, and an input ``x`` of shape (5, 3)
whose 3 features are the elements ``[7, 8, 9]``:

    operands   x: letters (n, k)    w: letters (m, k)        out: (n, m)
    letter k   ``[7, 8, 9]`` meets ``[2, 3, 4]``: equated element by element, 7 ≡ 2, 8 ≡ 3, 9 ≡ 4
    reduced    k is not in ``out``: ``{2, 3, 4}`` is marked as a set, the sum does not care about its order
    result     dims (n, m): n has no part, m has the elements ``[0, 1]``
"""

from __future__ import annotations

import math
from collections.abc import (
    Collection,
    Hashable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import dataclass, field, replace
from itertools import pairwise

from lightning_rebasin.symmetry.permutations.elements import (
    Constraints,
    Elements,
)
from lightning_rebasin.symmetry.permutations.labels import (
    Label,
    Part,
    canonical,
    fuse_sites,
    renumbered,
    split_site,
)

#: Name of a dimension that runs together with those of the same name.
Letter = Hashable
#: The number of every site of every letter in the joint label.
Numbers = Mapping[tuple[Letter, int], int]


@dataclass(frozen=True)
class Refinement:
    """A wish: the axis of ``inner`` should be ordered separately for each of the leading ``blocks`` of ``outer``.

    The stacked matrices of attention heads, a parameter ``(4 heads, 8, 8)``, start with one run of 8 elements per axis;
    after the wish is granted each head has 8 of its own.  With ``stack`` it is only granted to tensors of three or more
    dimensions, to an inner axis behind the outer one.
    """

    inner: Elements
    outer: Elements
    blocks: int
    stack: bool = False


@dataclass
class Wishes:
    """Refinements asked for during a pass over the tape; the next pass grants them."""

    found: dict[tuple[bytes, bytes, int], Refinement] = field(
        default_factory=dict
    )

    def ask(
        self,
        inner: Elements,
        outer: Elements,
        blocks: int,
        *,
        stack: bool = False,
    ) -> None:
        """Ask that ``inner`` depend on the blocks of ``outer``."""
        key = (inner.key, outer.key, blocks)
        # A wish without conditions counts more than the same one with a condition.
        if not stack or key not in self.found:
            self.found[key] = Refinement(inner, outer, blocks, stack)


@dataclass
class Operand:
    """One tensor taking part in a join and the letters of its dimensions."""

    label: Label
    letters: tuple[Letter, ...]

    def sites_of(self, letter: Letter) -> tuple[int, ...]:
        """Sites of a letter in this operand."""
        return (
            self.label.dims[self.letters.index(letter)]
            if letter in self.letters
            else ()
        )


@dataclass(frozen=True)
class _Joint:
    """All operands in terms of common site numbers: ``parts`` operand by operand."""

    numbers: Numbers
    sizes: tuple[int, ...]
    parts: list[list[Part]]
    pinned: set[int]
    pending: list[Elements]

    def sites_of(self, letters: Collection[Letter]) -> set[int]:
        """Site numbers of some letters."""
        return {
            number
            for (letter, _), number in self.numbers.items()
            if letter in letters
        }


def join(
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
    taking_part = [
        Operand(canonical(label, store), tuple(own)) for label, own in operands
    ]
    joint = _with_common_sites(store, taking_part, out)
    summed = [letter for letter, _ in joint.numbers if letter not in out]
    reduced = joint.sites_of(summed)
    if wishes is not None:
        _wish(wishes, joint.parts, joint.sites_of(batch), reduced)
    for elements in joint.pending:
        store.pin(elements, "it is picked out by itself")
    every_part = [part for own in joint.parts for part in own]
    inside: list[Part] = []
    parts = _relate(store, every_part, joint.pinned, joint.sizes, inside)
    # Parts inside others are cut into blocks too, so that the blocks of both are known to fit (grouped queries).
    for part in inside:
        if reduced.intersection(part.sites) and not reduced.issuperset(
            part.sites
        ):
            parts.append(part)
    return _without(joint, reduced, reduce_sites(store, parts, reduced), out)


def _without(
    joint: _Joint, reduced: set[int], parts: list[Part], out: Sequence[Letter]
) -> Label:
    """The label that is left when some sites are gone."""
    kept = [site for site in range(len(joint.sizes)) if site not in reduced]
    new = {site: i for i, site in enumerate(kept)}
    dims: dict[Letter, list[int]] = {letter: [] for letter in out}
    for (letter, _), site in joint.numbers.items():
        if letter in dims:
            dims[letter].append(new[site])
    found = [
        Part(tuple(new[site] for site in part.sites), part.elements)
        for part in parts
    ]
    return Label(
        tuple(tuple(dims[letter]) for letter in out),
        tuple(joint.sizes[site] for site in kept),
        tuple(found),
        frozenset(new[site] for site in joint.pinned if site in new),
    )


def combine_label(store: Constraints, label: Label) -> Label:
    """Relate the overlapping parts of one label (a parameter whose axes depend on each other)."""
    parts = _relate(store, label.parts, set(label.pinned), label.sizes, [])
    return replace(label, parts=tuple(parts))


def _with_common_sites(
    store: Constraints, operands: list[Operand], out: Sequence[Letter]
) -> _Joint:
    """Split the sites of all operands until they agree, and number them: first those of ``out``, letter by letter."""
    letters = list(dict.fromkeys(out))
    for operand in operands:
        letters += [
            letter for letter in operand.letters if letter not in letters
        ]
    numbers: dict[tuple[Letter, int], int] = {}
    sizes: list[int] = []
    for letter in letters:
        for k, size in enumerate(_agree(store, operands, letter)):
            numbers[letter, k] = len(sizes)
            sizes.append(size)
    parts: list[list[Part]] = []
    pinned: set[int] = set()
    pending: list[Elements] = []
    for operand in operands:
        common: dict[int, int] = {}
        for letter, sites in zip(
            operand.letters, operand.label.dims, strict=True
        ):
            for k, site in enumerate(sites):
                common[site] = numbers[letter, k]
        parts.append(
            [renumbered(part, common) for part in operand.label.parts]
        )
        pinned.update(common[site] for site in operand.label.pinned)
        pending += operand.label.pending
    return _Joint(numbers, tuple(sizes), parts, pinned, pending)


def _agree(
    store: Constraints, operands: list[Operand], letter: Letter
) -> tuple[int, ...]:
    """Split the sites of a letter until all operands agree; returns the sizes of its sites.

    Layouts ``(6,)`` and ``(2, 3)`` agree on ``(2, 3)``; ``(2, 3)`` and ``(3, 2)`` only on ``(6,)``.
    """
    having = [operand for operand in operands if operand.sites_of(letter)]
    layouts = {_layout(operand, letter) for operand in having}
    if len(layouts) > 1:
        common = _common_factors(layouts)
        if common is None:
            for operand in having:
                _fuse_letter(store, operand, letter)
            common = (math.prod(next(iter(layouts))),)
        for operand in having:
            _split_letter(operand, letter, common)
        layouts = {common}
    return next(iter(layouts), ())


def _layout(operand: Operand, letter: Letter) -> tuple[int, ...]:
    return tuple(
        operand.label.sizes[site] for site in operand.sites_of(letter)
    )


def _common_factors(
    layouts: Iterable[tuple[int, ...]],
) -> tuple[int, ...] | None:
    """The coarsest factors that all layouts can be split into, or ``None``.

    A layout cuts the whole at the products of its last factors: ``(2, 3)`` at 1, 3 and 6.
    """
    cuts: set[int] = set()
    for sizes in layouts:
        cuts.update(math.prod(sizes[k:]) for k in range(len(sizes) + 1))
    steps = list(pairwise(sorted(cuts)))
    if any(above % below for below, above in steps):
        return None
    return tuple(above // below for below, above in reversed(steps))


def _fuse_letter(store: Constraints, operand: Operand, letter: Letter) -> None:
    sites = operand.sites_of(letter)
    if sites != tuple(range(sites[0], sites[0] + len(sites))):
        raise AssertionError(
            f"sites {sites} of one dimension are not consecutive"
        )
    operand.label = fuse_sites(operand.label, sites[0], len(sites), store)


def _split_letter(
    operand: Operand, letter: Letter, common: tuple[int, ...]
) -> None:
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


def _wish(
    wishes: Wishes, parts: list[list[Part]], batch: set[int], summed: set[int]
) -> None:
    """Ask for finer axes where an operand's axes are independent but the operation stacks them."""
    spanning = [
        set(part.sites) for own in parts for part in own if len(part.sites) > 1
    ]
    for own in parts:
        for outer, inner in _apart(own):
            both = {*inner.sites, *outer.sites}
            stacked = _sizes_within(outer, batch)
            size = outer.elements.ids.size
            if stacked and not batch.intersection(inner.sites):
                # the outer axis is a batch letter of the operation
                wishes.ask(inner.elements, outer.elements, math.prod(stacked))
            elif any(both <= sites for sites in spanning):
                # another operand's part spans both axes
                wishes.ask(inner.elements, outer.elements, size)
            elif len(parts) > 1 and both <= summed:
                # both axes are contracted together (a mixture of experts)
                wishes.ask(inner.elements, outer.elements, size, stack=True)


def _apart(parts: list[Part]) -> Iterator[tuple[Part, Part]]:
    """Ordered pairs of parts that share no site."""
    for outer in parts:
        for inner in parts:
            if not set(inner.sites) & set(outer.sites):
                yield outer, inner


def _sizes_within(part: Part, sites: set[int]) -> list[int]:
    """Sizes of a part along some sites."""
    pairs = zip(part.sites, part.elements.shape, strict=True)
    return [size for site, size in pairs if site in sites]


def _relate(
    store: Constraints,
    parts: Iterable[Part],
    pinned: set[int],
    sizes: Sequence[int],
    inside: list[Part],
) -> list[Part]:
    """Equate and relate parts over the same sites; apply pins; parts within others go to ``inside``."""
    by_sites = _equated(store, parts)
    _apply_pins(store, by_sites, pinned, sizes)
    # From the largest part down: whatever lies inside another is below it.
    ordered = sorted(by_sites, key=lambda sites: (-len(sites), sites))
    dropped: set[tuple[int, ...]] = set()
    for i, big in enumerate(ordered):
        for small in ordered[i + 1 :]:
            shared = sorted(set(big) & set(small))
            if not shared or small in dropped:
                continue
            axes = tuple(big.index(site) for site in shared)
            if set(small) <= set(big):
                store.relation(
                    store.canonical(by_sites[big]), by_sites[small], axes
                )
                dropped.add(small)
                inside.append(Part(small, by_sites[small]))
            else:
                # Neither lies in the other: what they share are blocks of both.
                theirs = tuple(small.index(site) for site in shared)
                blocks = store.project(by_sites[big], axes)
                store.equal(blocks, store.project(by_sites[small], theirs))
    left = [
        (sites, found)
        for sites, found in by_sites.items()
        if sites not in dropped
    ]
    return [Part(sites, store.canonical(found)) for sites, found in left]


def _equated(
    store: Constraints, parts: Iterable[Part]
) -> dict[tuple[int, ...], Elements]:
    """One part for each set of sites; elements that meet there are the same."""
    by_sites: dict[tuple[int, ...], Elements] = {}
    for part in parts:
        known = by_sites.get(part.sites)
        by_sites[part.sites] = (
            part.elements
            if known is None
            else store.equal(known, part.elements)
        )
    return by_sites


def _apply_pins(
    store: Constraints,
    by_sites: dict[tuple[int, ...], Elements],
    pinned: set[int],
    sizes: Sequence[int],
) -> None:
    """Fix what meets a pinned site: parts over it alone go, the others keep their coordinate along it."""
    for site in [sites[0] for sites in by_sites if len(sites) == 1]:
        if site in pinned:
            reason = f"it meets a dimension of size {sizes[site]} whose order is fixed"
            store.pin(by_sites.pop((site,)), reason)
    for sites, elements in by_sites.items():
        for site in pinned.intersection(sites):
            axis = sites.index(site)
            store.position(
                elements, axis, "it meets a dimension whose order is fixed"
            )


def reduce_sites(
    store: Constraints,
    parts: Iterable[Part],
    reduced: set[int],
    *,
    keep: bool = False,
) -> list[Part]:
    """Reduce some sites: parts inside are marked, parts that straddle are projected to their blocks.

    Args:
        store: Receives the constraints.
        parts: Parts of the tensor.
        reduced: Sites to reduce.
        keep: The dimensions stay (softmax, normalisation): the blocks are related, the parts stay.
    """
    parts = list(parts)
    left: list[Part] = []
    for part in parts:
        rest = tuple(site for site in part.sites if site not in reduced)
        if rest == part.sites:
            left.append(part)
        elif rest:
            axes = tuple(part.sites.index(site) for site in rest)
            blocks = store.project(part.elements, axes, commit=keep)
            left.append(part if keep else Part(rest, blocks))
        else:
            store.mark(part.elements)
            left += [part] if keep else []
    if keep:
        # Two parts over the same sites are the same elements, whatever else is done with them.
        _equated(store, left)
        return parts
    return _relate(store, left, set(), [], [])
