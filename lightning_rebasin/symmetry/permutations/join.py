"""Joining labels: the one rule behind nearly every operation.

Operands name their dimensions with *letters*, as in an einsum.  Dimensions with the same letter run together: their
sites are split until they agree, elements at the same place are equated, a part over fewer sites becomes the parent of
one over more, and a pinned site pins the parts of the others.  Contracted letters are then reduced: a part that lies
within them is marked as a set, a part that straddles them is projected to its blocks.

A linear layer with a 2×3 weight, ``y = x Wᵀ``, is the join ``bi, oi -> bo``::

    x       b pinned (the batch)    i: [7 8 9], the units of the layer before
    W       o: [0 1]                i: [2 3 4]

    joined  i: 7 ≡ 2, 8 ≡ 3, 9 ≡ 4  the columns of W are those units
            i is summed over        [7 8 9] is marked: its elements are used as a set, in any order
    result  b pinned                o: [0 1]

The bias ``[5 6]`` added to it is the join ``bo, o -> bo``: 0 ≡ 5 and 1 ≡ 6.  If ``x`` were the input of the network,
its ``i`` would be pinned, and so would be 2, 3 and 4.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, product
from typing import final

from lightning_rebasin.symmetry.permutations.align import (
    Factors,
    Letter,
    Operand,
    align,
)
from lightning_rebasin.symmetry.permutations.elements import (
    Constraints,
    Elements,
)
from lightning_rebasin.symmetry.permutations.labels import (
    Label,
    Part,
    Sites,
    canonical,
    renumber_part,
)
from lightning_rebasin.symmetry.permutations.parts import (
    combine_parts,
    reduce_parts,
)

#: A label and the letters of its dimensions.
Lettered = tuple[Label, Sequence[Letter]]
#: The parts of every operand.
OfOperands = Sequence[Sequence[Part]]
#: Keys of the inner and the outer elements, and how many blocks.
WishKey = tuple[bytes, bytes, int]


@final
@dataclass(frozen=True)
class Refinement:
    """One wish: the axis of ``inner`` should be ordered separately for each of the leading ``blocks`` of ``outer``.

    A stacked 2×3×4 parameter (2 experts, 3 units, 4 inputs) starts with one run of 3 elements for its units.  If an
    operation shows that every expert may order its units by itself, it wishes for ``inner`` = the 3 units, ``outer`` =
    the 2 experts, ``blocks`` = 2, and the next pass starts with 2×3 elements for the units.

    Args:
        inner: Elements of the axis to refine.
        outer: Elements of the axis on which its order may depend.
        blocks: How many blocks ``outer`` has.
        stack: Grant it only to tensors of three or more dimensions, to an inner axis behind the outer one.
    """

    inner: Elements
    outer: Elements
    blocks: int
    stack: bool = False


@final
@dataclass
class Wishes:
    """The refinements that operations asked for during one pass over the tape; the next pass grants them.

    Args:
        found: Each wish once, in the order in which they were asked for.
    """

    found: dict[WishKey, Refinement] = field(default_factory=dict)

    def ask(
        self,
        inner: Elements,
        outer: Elements,
        blocks: int,
        *,
        stack: bool = False,
    ) -> None:
        """Ask for a :class:`Refinement`; one for any tensor replaces one for stacks only."""
        key = (inner.key, outer.key, blocks)
        if stack and key in self.found:
            return
        self.found[key] = Refinement(inner, outer, blocks, stack)


def join(
    store: Constraints,
    operands: Sequence[Lettered],
    out: Sequence[Letter],
    *,
    batch: Collection[Letter] = (),
    wishes: Wishes | None = None,
) -> Label:
    """Join labels like an einsum over letters; letters missing from ``out`` are reduced.

    Args:
        store: Receives the constraints.
        operands: Labels with one letter per dimension.
        out: Letters of the result, each once.
        batch: Letters that stack independent problems: a parameter's axes may depend on them.
        wishes: Receives requests for finer parameter axes.

    Returns:
        The label of the result.

    Example:
        >>> from lightning_rebasin.symmetry.permutations.labels import plain
        >>> store = Constraints()
        >>> weight = Label(((0,), (1,)), (2, 3), (Part((0,), store.fresh((2,))), Part((1,), store.fresh((3,)))))
        >>> result = join(store, [(plain((5, 3), pinned=[0, 1]), "bi"), (weight, "oi")], "bo")
        >>> result.shape, result.pinned, [(part.sites, part.elements.ids.tolist()) for part in result.parts]
        ((5, 2), frozenset({0}), [((1,), [0, 1])])
        >>> [(table.kind, table.left.tolist(), table.reason) for table in store.tables]
        [('position', [2, 3, 4], 'it meets a dimension of size 3 whose order is fixed')]
    """
    given = []
    for label, letters in operands:
        present = canonical(label, store)
        operand = Operand(present, tuple(letters))
        given.append(operand)
    everything = _all_letters(given, out)
    aligned = align(store, given, everything)
    layout = _number_sites(aligned.factors, out)
    reduced = layout.reduced
    meeting = _meeting(aligned.operands, layout)
    if wishes is not None:
        stacked = layout.sites_of(batch)
        summed = set(reduced)
        _ask_for_finer_axes(wishes, meeting.parts, stacked, summed)
    for operand in aligned.operands:
        pin_pending(store, operand.label)

    pinned = meeting.pinned
    parts = chain.from_iterable(meeting.parts)
    together, inside = combine_parts(store, parts, pinned, layout.sizes)
    # Parts inside others are cut into blocks too, so that the blocks of both are known to fit (grouped queries).
    together += [part for part in inside if _straddles(part, reduced)]
    left = reduce_parts(store, together, reduced)
    dims = [layout.sites[letter] for letter in out]
    sizes = layout.sizes[: reduced.start]
    still_pinned = pinned.difference(reduced)
    return Label(tuple(dims), sizes, tuple(left), frozenset(still_pinned))


def combine_label(store: Constraints, label: Label) -> Label:
    """Relate the overlapping parts of one label (a parameter whose axes depend on each other)."""
    remaining, _ = combine_parts(store, label.parts, label.pinned, label.sizes)
    return label.with_parts(remaining)


def pin_pending(store: Constraints, label: Label) -> None:
    """Pin what was picked out of a tensor one by one, now that the tensor is used."""
    for elements in label.pending:
        store.pin(elements, "it is picked out by itself")


def _all_letters(
    operands: Sequence[Operand], out: Sequence[Letter]
) -> list[Letter]:
    """Every letter once: those of the result, then those that are reduced."""
    letters = list(out)
    for operand in operands:
        new = [letter for letter in operand.letters if letter not in letters]
        letters.extend(new)
    return letters


@dataclass(frozen=True)
class _Layout:
    """Common sites: those of all letters, numbered one after the other, the letters of the result first.

    For ``bi, oi -> bo`` with a 5×3 and a 2×3 tensor: ``b: (0,)``, ``o: (1,)``, ``i: (2,)`` of sizes 5, 2, 3, and site 2
    is reduced.
    """

    sites: Mapping[Letter, Sites]
    sizes: tuple[int, ...]
    reduced: range

    def sites_of(self, letters: Iterable[Letter]) -> set[int]:
        """The sites of some letters."""
        found: set[int] = set()
        for letter in letters:
            # A product without a batch has no batch letter.
            sites = self.sites.get(letter, ())
            found.update(sites)
        return found


def _number_sites(
    factors: Mapping[Letter, Factors], out: Sequence[Letter]
) -> _Layout:
    """Number the sites of all letters, whose sizes are ``factors``."""
    sites: dict[Letter, Sites] = {}
    sizes: list[int] = []
    for letter, own in factors.items():
        first = len(sizes)
        sizes.extend(own)
        numbers = range(first, len(sizes))
        sites[letter] = tuple(numbers)
    kept = 0
    for letter in out:
        kept += len(sites[letter])
    reduced = range(kept, len(sizes))
    return _Layout(sites, tuple(sizes), reduced)


@dataclass(frozen=True)
class _Meeting:
    """What the operands say about common sites: the parts of each of them, and the sites that any of them pins."""

    parts: OfOperands
    pinned: set[int]


def _meeting(operands: Sequence[Operand], layout: _Layout) -> _Meeting:
    """Parts and pinned sites of all operands in terms of common sites."""
    parts: list[list[Part]] = []
    pinned: set[int] = set()
    for operand in operands:
        label = operand.label
        number = operand.numbers_in(layout.sites)
        own = [renumber_part(part, number) for part in label.parts]
        parts.append(own)
        pinned.update(number[site] for site in label.pinned)
    return _Meeting(parts, pinned)


def _straddles(part: Part, reduced: range) -> bool:
    """Whether some but not all sites of a part are reduced."""
    inside = [site in reduced for site in part.sites]
    return any(inside) and not all(inside)


def _ask_for_finer_axes(
    wishes: Wishes, parts: OfOperands, batch: set[int], summed: set[int]
) -> None:
    """Ask for finer axes where an operand's axes are independent but the operation stacks them.

    Args:
        wishes: Receives the requests.
        parts: The parts of every operand.
        batch: Sites that stack independent problems.
        summed: Sites that are contracted.
    """
    spanning = _spanning(parts)
    for own in parts:
        for outer, inner in product(own, own):
            if outer.touches(inner.sites):
                # One of them depends on the other already.
                continue
            both = {*outer.sites, *inner.sites}
            everything = outer.elements.ids.size
            blocks = _stacked_blocks(outer, batch)
            if blocks > 1 and not inner.touches(batch):
                # A batch letter: every matrix of a stack is used by itself.
                wishes.ask(inner.elements, outer.elements, blocks)
            elif any(both <= sites for sites in spanning):
                # Another operand's part spans both axes: its units are told apart by both of them.
                wishes.ask(inner.elements, outer.elements, everything)
            elif both <= summed and len(parts) > 1:
                # Both axes are contracted together (a mixture of experts).
                wishes.ask(
                    inner.elements, outer.elements, everything, stack=True
                )


def _spanning(parts: OfOperands) -> list[set[int]]:
    """The sites of all parts over several of them."""
    everything = chain.from_iterable(parts)
    found = [set(part.sites) for part in everything]
    return [sites for sites in found if len(sites) > 1]


def _stacked_blocks(part: Part, batch: set[int]) -> int:
    """How many independent problems the sites of a part stack."""
    blocks = 1
    shape = part.elements.shape
    for site, size in zip(part.sites, shape, strict=True):
        if site in batch:
            blocks *= size
    return blocks
