"""Parts that meet: which constraints follow when several parts lie over the same sites.

Take the sites 0 and 1 of a 2×3 tensor.  Two parts may meet there in four ways::

    (0,): [0 1]   and   (0,): [5 6]                    0 ≡ 5 and 1 ≡ 6: one unit each
    (0,): [0 1]   and   site 0 pinned                  0 and 1 stay where they are
    (0, 1): [[5 6 7], [8 9 10]]   and   (0,): [0 1]    5, 6 and 7 lie in the block of 0; 8, 9 and 10 in that of 1
    (0, 1): ...   and   (1, 2): ...                    neither holds the other: what both say about site 1 is equated

Where a site is reduced (summed over), a part that lies within the reduced sites was used as a set: it is *marked*.  A
part that lies over others too is *projected*: of ``[[5 6 7], [8 9 10]]``, summed over its columns, the blocks of the
two rows remain.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from itertools import combinations

from lightning_rebasin.symmetry.permutations.elements import Constraints
from lightning_rebasin.symmetry.permutations.labels import Part, Sites

#: Parts by the sites over which they lie.
BySites = dict[Sites, Part]
#: What remains of some parts, and what lay within it.
Combined = tuple[list[Part], list[Part]]


def combine_parts(
    store: Constraints,
    parts: Iterable[Part],
    pinned: Iterable[int],
    sizes: Sequence[int],
) -> Combined:
    """Equate and relate parts that share sites, and pin those that meet a pinned site.

    Args:
        store: Receives the constraints.
        parts: Parts of one tensor, or of several in terms of common sites.
        pinned: Sites whose order matters.
        sizes: Size of every site, for the reasons.

    Returns:
        The parts that remain, and the parts that lay within one of them.
    """
    by_sites: BySites = {}
    for part in parts:
        _add(store, by_sites, part)
    _apply_pins(store, by_sites, set(pinned), sizes)
    return _relate(store, by_sites)


def _add(store: Constraints, by_sites: BySites, part: Part) -> None:
    """Add a part; what lies over the same sites already is equated with it."""
    known = by_sites.get(part.sites)
    if known is not None:
        units = store.equal(known.elements, part.elements)
        part = part.with_elements(units)
    by_sites[part.sites] = part


def _apply_pins(
    store: Constraints,
    by_sites: BySites,
    pinned: set[int],
    sizes: Sequence[int],
) -> None:
    """Elements that meet a pinned site keep their position along it; those along it alone are dropped."""
    for part in list(by_sites.values()):
        site, *more = part.sites
        if site in pinned and not more:
            size = sizes[site]
            store.pin(
                part.elements,
                f"it meets a dimension of size {size} whose order is fixed",
            )
            del by_sites[part.sites]
    for part in by_sites.values():
        for site in pinned.intersection(part.sites):
            axis = part.axis_of(site)
            store.position(
                part.elements,
                axis,
                "it meets a dimension whose order is fixed",
            )


def _relate(store: Constraints, by_sites: BySites) -> Combined:
    """Relate parts that share some sites."""
    # Those over many sites come first, so that whatever may hold a part is compared with it.
    ordered = sorted(by_sites)
    ordered.sort(key=len, reverse=True)
    inside: BySites = {}
    for several, fewer in combinations(ordered, 2):
        big = by_sites[several]
        small = by_sites[fewer]
        shared = [site for site in fewer if site in several]
        if not shared or fewer in inside:
            continue
        axes = big.axes_of(shared)
        if len(shared) == len(fewer):
            # Every element of the bigger part lies below one of the smaller: its block.
            child = store.canonical(big.elements)
            store.relation(child, small.elements, axes)
            inside[fewer] = small
        else:
            mine = store.project(big.elements, axes)
            axes = small.axes_of(shared)
            theirs = store.project(small.elements, axes)
            store.equal(mine, theirs)
    remaining = []
    for sites, part in by_sites.items():
        if sites not in inside:
            elements = store.canonical(part.elements)
            remaining.append(part.with_elements(elements))
    return remaining, list(inside.values())


def reduce_parts(
    store: Constraints, parts: Iterable[Part], reduced: Collection[int]
) -> list[Part]:
    """Reduce sites away: parts inside are marked, parts that straddle are projected to their blocks.

    Args:
        store: Receives the constraints.
        parts: Parts of the tensor.
        reduced: Sites to reduce.

    Returns:
        Parts over the sites that are left.
    """
    left: BySites = {}
    for part in parts:
        kept = _kept_sites(part, reduced)
        if not kept:
            store.mark(part.elements)
        elif kept == part.sites:
            _add(store, left, part)
        else:
            axes = part.axes_of(kept)
            blocks = store.project(part.elements, axes)
            block_part = Part(kept, blocks)
            _add(store, left, block_part)
    remaining, _ = _relate(store, left)
    return remaining


def relate_blocks(
    store: Constraints, parts: Iterable[Part], reduced: Collection[int]
) -> None:
    """Like :func:`reduce_parts` for a normalisation, whose result meets every position again: the parts stay.

    Args:
        store: Receives the constraints.
        parts: Parts of the tensor.
        reduced: Sites over which is normalised.
    """
    for part in parts:
        kept = _kept_sites(part, reduced)
        if not kept:
            store.mark(part.elements)
        elif kept != part.sites:
            axes = part.axes_of(kept)
            # Committed: the blocks count even if nothing ever uses their elements.
            store.project(part.elements, axes, commit=True)


def _kept_sites(part: Part, reduced: Collection[int]) -> Sites:
    """The sites of a part that are not reduced."""
    return tuple(site for site in part.sites if site not in reduced)
