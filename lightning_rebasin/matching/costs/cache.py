"""Cost matrices that are kept and updated instead of rebuilt.

One matrix per group.  Static terms enter once.  Each other term remembers the orders that its part of the matrix was
made with: orders are never written to, only replaced, so ``is`` tells whether a neighbour moved at all.  If nothing
moved, the matrix, and the assignment that was optimal for it, still stand, and the visit is skipped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import final
from weakref import finalize

import torch
from torch import Tensor

from lightning_rebasin.matching.costs.blocks import Block, Flats, blocks_of
from lightning_rebasin.matching.costs.layouts import Layouts, Scratch
from lightning_rebasin.matching.costs.packed import PackedCost, Packing
from lightning_rebasin.matching.costs.terms import (
    Term,
    add_bilinear,
    add_bilinear_change,
    add_general,
    add_soft,
    add_static,
    terms_of,
)
from lightning_rebasin.symmetry.spec.spec import PermutationSpec

#: Updates may add up to this many times the rank of the whole matrix before it is built anew.
_MOST_DRIFT = 4.0


@final
class TermTable:
    """The terms of a spec by group, computed once per spec.

    Args:
        spec: The spec.
    """

    def __init__(self, spec: PermutationSpec) -> None:
        # Only the groups: a reference to the spec itself would keep it alive for ever.
        self.groups = spec.groups
        self.blocks = blocks_of(spec)
        by_group: dict[str, list[Term]] = {name: [] for name in spec.groups}
        for term in terms_of(spec, self.blocks):
            by_group[term.group].append(term)
        self.by_group: Mapping[str, tuple[Term, ...]] = {
            name: tuple(terms) for name, terms in by_group.items()
        }
        self.packings = {
            name: Packing.of(terms, spec.groups[name].members)
            for name, terms in self.by_group.items()
        }
        # A tensor may fall apart into several blocks, each with groups of its own.
        self._roots: dict[str, frozenset[str]] = {}
        for block in self.blocks:
            roots = frozenset(self._root(group) for group in block.groups)
            self._roots[block.tensor] = (
                self._roots.get(block.tensor, frozenset()) | roots
            )
        self.depends_on = {
            name: _partners(terms) for name, terms in by_group.items()
        }
        # Where a group acts twice on one block the objective is quadratic in it, and a step only a linearisation.
        self.coupled = frozenset(
            root for block in self.blocks for root in _twice(spec, block)
        )

    @classmethod
    def of(cls, spec: PermutationSpec) -> TermTable:
        """The table of ``spec``, made once and kept as long as the spec lives."""
        key = id(spec)
        if key not in _TABLES:
            _TABLES[key] = cls(spec)
            finalize(spec, _TABLES.pop, key, None)
        return _TABLES[key]

    def tensors_of(self, root: str) -> tuple[str, ...]:
        """Tensors of the objective on which the family of ``root`` acts."""
        return tuple(
            dict.fromkeys(
                b.tensor
                for b in self.blocks
                if any(self._root(g) == root for g in b.groups)
            )
        )

    def roots_of(self, tensor: str) -> frozenset[str]:
        """Roots of the families that act on ``tensor``."""
        return self._roots.get(tensor, frozenset())

    def _root(self, group: str) -> str:
        return self.groups[group].root.id


#: By identity: comparing specs for equality would cost more than making the table.
_TABLES: dict[int, TermTable] = {}


@final
class CostCache:
    """The cost matrices of every group for one reference and one source.

    Args:
        table: The terms.
        reference: Layouts of the reference.
        source: Layouts of the source.
        dtype: Working dtype.
        device: Where the matrices live.
    """

    def __init__(
        self,
        table: TermTable,
        reference: Layouts,
        source: Layouts,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._table = table
        self._reference = reference
        self._source = source
        self.dtype = dtype
        self.device = device
        self._static: dict[str, Tensor | None] = {}
        self._cost: dict[str, Tensor] = {}
        # The very tensors of orders: they are replaced, never written to, so identity tells whether one moved.
        self._made_with: dict[str, tuple[Tensor, ...]] = {}
        self._vouched: dict[str, tuple[Tensor, ...]] = {}
        self._linear: dict[str, Tensor] = {}
        self._drift: dict[str, float] = {}
        self._packed: dict[str, PackedCost | None] = {}
        self._scratch = Scratch(dtype, device, keep=source.keep)
        self._at_work: dict[str, tuple[Tensor, Tensor | None]] = {}

    def stale(self, group: str, flats: Flats) -> bool:
        """Whether the cost of ``group`` differs from the one last returned."""
        made_with = self._made_with.get(group, self._vouched.get(group))
        return made_with is None or any(
            a is not b
            for a, b in zip(made_with, self._state(group, flats), strict=True)
        )

    def vouch(self, group: str, flats: Flats) -> None:
        """Take it that the cost of ``group`` was looked at under these orders, without building it.

        An earlier process did so: what it decided stands until a neighbour moves.
        """
        self._vouched[group] = self._state(group, flats)

    def forget(self) -> None:
        """Free all matrices; they are built anew when asked for."""
        for kept in (
            self._static,
            self._cost,
            self._made_with,
            self._vouched,
            self._linear,
            self._drift,
            self._packed,
        ):
            kept.clear()
        self._scratch.forget()

    def matrix(self, group: str, flats: Flats) -> Tensor:
        """``C[i, j]``: what the objective gains if new unit ``i`` of ``group`` is old unit ``j``.

        Args:
            group: The group.
            flats: The current flat orders of all groups, on the CPU.

        Returns:
            Tensor ``(members, members)`` in the working dtype; valid until the next call for the same group.
        """
        if group not in self._cost or self.stale(group, flats):
            packed = self._packed_cost(group)
            self._cost[group] = (
                self._linear_and_general(group, flats)
                if packed is None
                else packed.matrix(flats)
            )
            self._made_with[group] = self._state(group, flats)
        return self._cost[group]

    @property
    def soft_work(self) -> float:
        """Floating-point operations of one :meth:`soft_matrix` for every group."""
        work = 0.0
        for terms in self._table.by_group.values():
            for term in terms:
                own = term.block.lengths[term.axis]
                mixed = sum(term.block.lengths[axis] for axis in term.partners)
                work += (
                    2.0 * term.rank * own * (own + mixed) * bool(term.partners)
                )
        return work

    def soft_matrix(self, group: str, soft: Mapping[str, Tensor]) -> Tensor:
        """The cost of ``group`` while every other group is only softly ordered.

        Args:
            group: The group.
            soft: For each group a doubly stochastic ``(members, members)`` matrix.

        Returns:
            Tensor ``(members, members)``.  Terms with joint axes are left out.
        """
        static = self._static_part(group)
        members = self._table.groups[group].members
        zeros = torch.zeros(
            members, members, dtype=self.dtype, device=self.device
        )
        cost = zeros if static is None else static.clone()
        for term in self._table.by_group[group]:
            if term.partners and not term.joint:
                add_soft(
                    cost,
                    term,
                    self._reference,
                    self._source,
                    soft,
                    self._scratch,
                )
        return cost

    def _linear_and_general(self, group: str, flats: Flats) -> Tensor:
        changes = self._changes(group, flats)
        # Either the whole matrix is built, or what changed is added to the one that stands.
        if changes is None:
            self._rebuild(group, flats)
        for term, before, after, where in changes or ():
            models = self._reference, self._source
            add_bilinear_change(
                self._linear[group],
                term,
                *models,
                before,
                after,
                where,
                self._scratch,
            )
        return self._with_general(group, flats)

    def _packed_cost(self, group: str) -> PackedCost | None:
        if group not in self._packed:
            packing, models = (
                self._table.packings[group],
                (self._reference, self._source),
            )
            self._packed[group] = (
                PackedCost(packing, *models)
                if packing and packing.fits(*models)
                else None
            )
        return self._packed[group]

    def _state(self, group: str, flats: Flats) -> tuple[Tensor, ...]:
        return tuple(flats[other] for other in self._table.depends_on[group])

    def _changes(
        self, group: str, flats: Flats
    ) -> list[tuple[Term, Tensor, Tensor, Tensor]] | None:
        """The bilinear terms whose partner moved, with where; ``None`` if building anew is cheaper or overdue."""
        if group not in self._made_with:
            return None
        # What each neighbour's order was when this matrix was made.
        seen = dict(
            zip(
                self._table.depends_on[group],
                self._made_with[group],
                strict=True,
            )
        )
        changes, rank, full = [], 0, 0
        where: dict[str, Tensor] = {}
        for term in self._table.by_group[group]:
            if term.kind == "bilinear":
                before, after = seen[term.partner], flats[term.partner]
                full += term.rank
                if before is not after:
                    # One neighbour may enter through several weights, but its moves are the same in all of them.
                    if term.partner not in where:
                        where[term.partner] = (
                            (before != after).nonzero().reshape(-1)
                        )
                    moved = where[term.partner]
                    rank += term.rank * len(moved) // max(len(after), 1)
                    device = self.device
                    changes.append(
                        (
                            term,
                            before.to(device),
                            after.to(device),
                            moved.to(device),
                        )
                    )
        self._drift[group] += rank / max(full, 1)
        # Every update adds rounding errors of its own, so they may not pile up for ever.
        overdue = self._drift[group] > _MOST_DRIFT
        return (
            None
            if overdue
            or rank > _worthwhile(self._table.groups[group].members) * full
            else changes
        )

    def _rebuild(self, group: str, flats: Flats) -> None:
        if not self._linear:
            # One allocation: matrices that live long would scatter among temporary ones and leave memory full of holes.
            sizes = {
                name: of.members for name, of in self._table.groups.items()
            }
            room = torch.empty(
                sum(n * n for n in sizes.values()),
                dtype=self.dtype,
                device=self.device,
            )
            parts = torch.split(room, [n * n for n in sizes.values()])
            self._linear = {
                name: part.view(n, n)
                for (name, n), part in zip(sizes.items(), parts, strict=True)
            }
        cost = self._linear[group].zero_()
        if group in self._made_with:
            # Built before, so perhaps again: from now on the static part is kept.
            if (static := self._static_part(group)) is not None:
                cost.copy_(static)
        else:
            add_static(
                cost, self._static_terms(group), self._reference, self._source
            )
        for term in self._table.by_group[group]:
            if term.kind == "bilinear":
                moved = self._moved(term.partner, flats[term.partner])
                add_bilinear(
                    cost,
                    term,
                    self._reference,
                    self._source,
                    moved,
                    self._scratch,
                )
        self._drift[group] = 0.0

    def _moved(self, group: str, flat: Tensor) -> Tensor | None:
        """``flat`` on the device; ``None`` if it moves nothing."""
        known = self._at_work.get(group)
        if known is None or known[0] is not flat:
            moved = (
                None
                if torch.equal(flat, torch.arange(len(flat)))
                else flat.to(self.device)
            )
            known = self._at_work[group] = (flat, moved)
        return known[1]

    def _with_general(self, group: str, flats: Flats) -> Tensor:
        terms = [
            term
            for term in self._table.by_group[group]
            if term.kind == "general"
        ]
        if not terms:
            return self._linear[group]
        # General terms change with every order: they go on a copy, so that the linear part can be updated on.
        cost = self._linear[group].clone()
        for term in terms:
            add_general(cost, term, self._reference, self._source, flats)
        return cost

    def _static_part(self, group: str) -> Tensor | None:
        if group not in self._static:
            terms = self._static_terms(group)
            members = self._table.groups[group].members
            made = (
                torch.zeros(
                    members, members, dtype=self.dtype, device=self.device
                )
                if terms
                else None
            )
            if made is not None:
                add_static(made, terms, self._reference, self._source)
            self._static[group] = made
        return self._static[group]

    def _static_terms(self, group: str) -> list[Term]:
        return [
            term
            for term in self._table.by_group[group]
            if term.kind == "static"
        ]


def _worthwhile(members: int) -> float:
    """Share of the whole rank up to which an update costs less than building anew.

    Per entry gathered, both multiply with ``members`` others; an update also reads three rows instead of one and
    subtracts.  The weights are fitted to measured times.
    """
    return (members + 50) / (members + 190)


def _partners(terms: list[Term]) -> tuple[str, ...]:
    """Groups whose orders the cost of these terms depends on."""
    found: dict[str, None] = {}
    for term in terms:
        if term.kind == "bilinear":
            found[term.partner] = None
        elif term.kind == "general":
            found.update(dict.fromkeys(sorted(term.block.groups)))
    return tuple(found)


def _twice(spec: PermutationSpec, block: Block) -> frozenset[str]:
    """Roots that act on two axes of one block, or on one axis through several groups."""
    roots = [
        spec.groups[group].root.id for axis in block.axes for group in axis
    ]
    return frozenset(root for root in roots if roots.count(root) > 1)
