"""Terms: what one axis of one block contributes to the cost matrix of its group.

For group ``g`` the cost ``C[i, j]`` is what the objective gains if new unit ``i`` is old unit ``j``, all other groups
as they are: the sum over every block axis of ``g`` of ``⟨A_i, B'_j⟩``, where ``B'`` has its *other* axes permuted
already.  A term is

- *static* if no other axis belongs to a group: it never changes;
- *bilinear* if exactly one other axis does, of another family: it changes by a product of rank ``k`` when ``k`` units
  of that group move;
- *general* otherwise (three permuted axes, tied axes, joint axes): rebuilt in the frame of the permuted source.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from lightning_rebasin.matching.costs.blocks import Block, Flats
from lightning_rebasin.matching.costs.layouts import SMALL, Layouts, Scratch
from lightning_rebasin.symmetry.spec.spec import PermutationSpec

TermKind = Literal["static", "bilinear", "general"]
#: Static terms of this rank or more are multiplied where they stand: copying them together would cost more.
_OWN_PRODUCT = 64


@dataclass(frozen=True, eq=False)
class Term:
    """One axis of one block, seen from its group.

    Args:
        group: The group whose cost matrix it adds to.
        block: The block.
        axis: The group's axis in the block.
        partners: The block's other axes that depend on groups.
        kind: How it must be kept up to date.
    """

    group: str
    block: Block
    axis: int
    partners: tuple[int, ...]
    kind: TermKind

    @cached_property
    def partner(self) -> str:
        """The one group that a bilinear term depends on."""
        return self.block.axes[self.partners[0]][0]

    @cached_property
    def joint(self) -> bool:
        """Whether a joint axis is involved."""
        return any(
            self.block.joint_segment(axis) is not None
            for axis in (self.axis, *self.partners)
        )

    @cached_property
    def rank(self) -> int:
        """Length of the sums behind each entry: everything in the block but the group's own axis."""
        return math.prod(
            size
            for axis, size in enumerate(self.block.lengths)
            if axis != self.axis
        )

    @cached_property
    def order(self) -> tuple[int, ...]:
        """The block's axes with the partners first and the group's own axis last."""
        rest = (
            a
            for a in range(len(self.block.axes))
            if a != self.axis and a not in self.partners
        )
        return (*self.partners, *rest, self.axis)

    @cached_property
    def leading(self) -> bool:
        """Whether the group's own axis comes first and the partner's second, as in any weight seen from its outputs."""
        return self.axis == 0 and self.partners == (1,)

    @cached_property
    def large(self) -> bool:
        """Whether the block is too large for the processor's cache."""
        return math.prod(self.block.lengths) >= SMALL

    @cached_property
    def following(self) -> bool:
        """Whether the partner's axis comes first, the group's own second, and more behind them, in a large block.

        So it is for the weight of a convolution seen from its inputs, but for kernels of one by one.
        """
        return (
            self.large
            and math.prod(self.block.lengths[2:]) > 1
            and self.axis == 1
            and self.partners == (0,)
        )


def terms_of(
    spec: PermutationSpec, blocks: Iterable[Block]
) -> tuple[Term, ...]:
    """All terms of ``blocks``: one per group axis; a joint axis gives one per group that it depends on."""
    found = []
    for block in blocks:
        for axis, groups in enumerate(block.axes):
            partners = tuple(
                a for a, other in enumerate(block.axes) if other and a != axis
            )
            found += [
                Term(
                    group,
                    block,
                    axis,
                    partners,
                    _kind(spec, block, axis, partners),
                )
                for group in groups
            ]
    return tuple(found)


def _kind(
    spec: PermutationSpec, block: Block, axis: int, partners: tuple[int, ...]
) -> TermKind:
    if (
        any(block.joint_segment(a) is not None for a in (axis, *partners))
        or len(partners) > 1
    ):
        return "general"
    if not partners:
        return "static"
    root = spec.groups[block.axes[axis][0]].root
    return (
        "general"
        if spec.groups[block.axes[partners[0]][0]].root == root
        else "bilinear"
    )


def add_static(
    cost: Tensor, terms: Sequence[Term], reference: Layouts, source: Layouts
) -> None:
    """Add all static terms of one group, the many small ones in one product."""
    # A network has dozens of biases and gains: stacked they take one call instead of one each.
    small = [term for term in terms if term.rank < _OWN_PRODUCT]
    if small:
        a, b = (
            torch.cat([_static_rows(of, term) for term in small]).to(
                cost.dtype
            )
            for of in (reference, source)
        )
        cost.addmm_(a.t(), b)
    for term in terms:
        if term.rank >= _OWN_PRODUCT:
            a, b = (
                of.view(term.block, term.order).to(cost.dtype)
                for of in (reference, source)
            )
            cost.addmm_(a.t(), b)


def _static_rows(of: Layouts, term: Term) -> Tensor:
    """The block as ``(everything else, members)``; short work for biases and norms."""
    if (
        len(term.block.lengths) == 1
        and (vector := of.natural(term.block)).ndim == 1
    ):
        return vector.unsqueeze(0)
    return of.view(term.block, term.order)


def add_bilinear(  # noqa: PLR0917
    cost: Tensor,
    term: Term,
    reference: Layouts,
    source: Layouts,
    flat: Tensor | None,
    scratch: Scratch,
) -> None:
    """Add the whole bilinear term to ``cost``, its partner in the order ``flat`` (``None``: as it stands)."""
    rows = _units(term, reference, "rows", scratch)
    cost.addmm_(rows, _units(term, source, "moved", scratch, flat).t())


def add_bilinear_change(  # noqa: PLR0917
    cost: Tensor,
    term: Term,
    reference: Layouts,
    source: Layouts,
    before: Tensor,
    after: Tensor,
    where: Tensor,
    scratch: Scratch,
) -> None:
    """Bring the bilinear term in ``cost`` from partner order ``before`` to ``after``, different in rows ``where``."""
    rows = _units(term, reference, "rows", scratch, where)
    new, old = after.index_select(0, where), before.index_select(0, where)
    cost.addmm_(rows, _units(term, source, "moved", scratch, new, old).t())


def _units(  # noqa: PLR0917
    term: Term,
    of: Layouts,
    room: str,
    scratch: Scratch,
    index: Tensor | None = None,
    less: Tensor | None = None,
) -> Tensor:
    """The block as a matrix ``(members, everything else)`` in the working dtype.

    Of the partner's axis only the parts ``index``, less the parts ``less``.
    """
    # Three ways to the same rows, chosen so that no large weight is copied just to be gathered.
    if term.following:
        return scratch.swapped(
            room,
            _taken(of.standing(term.block), 0, index, less, "taken", scratch),
        ).flatten(1)
    if term.leading:
        return _taken(
            of.standing(term.block), 1, index, less, room, scratch
        ).flatten(1)
    if index is None:
        return scratch.working(room, of.view(term.block, term.order)).t()
    return (
        _taken(
            of.contiguous(term.block, term.order),
            0,
            index,
            less,
            room,
            scratch,
        )
        .flatten(0, -2)
        .t()
    )


def _taken(  # noqa: PLR0917
    block: Tensor,
    axis: int,
    index: Tensor | None,
    less: Tensor | None,
    room: str,
    scratch: Scratch,
) -> Tensor:
    if index is None:
        return scratch.working(room, block)
    if less is None:
        return scratch.gather(room, block, axis, index)
    return scratch.difference(room, block, axis, index, less)


def add_soft(  # noqa: PLR0917
    cost: Tensor,
    term: Term,
    reference: Layouts,
    source: Layouts,
    soft: Mapping[str, Tensor],
    scratch: Scratch,
) -> None:
    """Add a term whose partners are mixed by doubly stochastic matrices instead of permuted."""
    rows = _units(term, reference, "rows", scratch)
    cost.addmm_(rows, _mixed_units(term, source, soft, scratch).t())


def _mixed_units(
    term: Term, source: Layouts, soft: Mapping[str, Tensor], scratch: Scratch
) -> Tensor:
    """As :func:`_units`, the partners mixed."""
    if term.following or (term.leading and term.large):
        block = scratch.working("moved", source.standing(term.block))
        if block.shape[2:].numel() == 1:
            return scratch.product(
                "mixed", block.flatten(1), soft[term.partner].t()
            )
        front = block if term.following else scratch.swapped("taken", block)
        mixed = scratch.product(
            "mixed", soft[term.partner], front.flatten(1)
        ).view(front.shape)
        return scratch.swapped("moved", mixed).flatten(1)
    # Small blocks: the partners come first, and each is mixed by a product from the left.
    moved = scratch.working("moved", source.contiguous(term.block, term.order))
    for position, axis in enumerate(term.partners):
        front = moved.movedim(position, 0)
        mixed = scratch.product(
            f"mixed {position}",
            soft[term.block.axes[axis][0]],
            front.reshape(len(front), -1),
        )
        moved = mixed.reshape(front.shape).movedim(0, position)
    return moved.flatten(0, -2).t()


def add_general(
    cost: Tensor, term: Term, reference: Layouts, source: Layouts, flats: Flats
) -> None:
    """Add a general term, built in the frame of the wholly permuted source and carried back to old units."""
    block, group = term.block, term.group
    # In this frame the cost says what new unit i gains from the unit that now stands at j, so j is renamed at the end.
    moved = source.natural(block)
    for axis in (term.axis, *term.partners):
        moved = moved.index_select(
            axis, block.index(axis, flats).to(moved.device)
        )
    own = _own_rows(term, reference.natural(block))
    framed = own @ _own_rows(term, moved).t()
    # With flat = [2, 0, 1] old unit 2 stands first: column 0 of the frame is column 2 of the cost.
    inverse = torch.argsort(flats[group])
    cost += framed.index_select(1, inverse.to(cost.device))


def _own_rows(term: Term, block: Tensor) -> Tensor:
    """The block as ``(members, everything else)``."""
    segment = term.block.joint_segment(term.axis)
    front = block.movedim(term.axis, 0)
    if segment is None or segment.joint is None:
        return front.reshape(front.shape[0], -1)
    axis_map, sites, components = segment.joint
    shape = tuple(axis_map.site_shape[site] for site in sites)
    split = front.reshape(*shape, -1)
    rows = []
    for component in components:
        if component.group == term.group:
            places = tuple(sites.index(site) for site in component.sites)
            flat = split.movedim(places, tuple(range(len(places))))
            flat = flat.reshape(math.prod(flat.shape[: len(places)]), -1)
            # Members in their order, copies of one member side by side.
            chosen = flat.index_select(
                0, component.index.reshape(-1).to(flat.device)
            )
            rows.append(chosen.reshape(component.index.shape[0], -1))
    return torch.cat(rows, 1)
