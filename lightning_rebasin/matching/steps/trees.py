"""The steps of kinds that act inside soft trees: flips of subtrees, and signed orders of rules.

For every pair of trees two Gram matrices are known, ``⟨rule of A, rule of B⟩`` and ``⟨leaf of A, leaf of B⟩``.  Both
steps find the best element exactly, for all pairs at once.

*Flips.*  Let V[n, m] be the most that can be reached when the subtree of B below node m comes to node n of A.  It is
flipped or not::

    V[n, m] = max(  G[n, m] + V[left n, left m]  + V[right n, right m],
                  − G[n, m] + V[left n, right m] + V[right n, left m] )

and at the leaves V is their Gram matrix.  Of ``2^(2^D − 1)`` elements one in all is looked at for each pair of nodes of
one level, ``4^0 + 4^1 + … + 4^(D−1)`` pairs.

*Signed orders.*  Rule by rule: which rule of B comes to the first place of A, with which sign?  Either choice halves
the leaves on both sides, and what is left is the same problem with one rule less and a Gram matrix of the halves added
up.  All ``2^D · D!`` elements are reached, and parts are shared between them.

Both are derived here; Kanoh and Sugiyama (ICLR 2025) try all elements.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from lightning_rebasin.assignment.solve import Solver
from lightning_rebasin.matching.steps.step import Step, register_step
from lightning_rebasin.symmetry.actions.flips import tree_depth
from lightning_rebasin.symmetry.spec.values import Group


class _TreeStep(Step):
    """A step that looks at rules and leaves."""

    def best(self, costs: Tensor, solver: Solver) -> tuple[Tensor, Tensor]:
        """Rules alone, as if all leaves were the same."""
        rules = costs.shape[-1]
        return self.best_of(Group("tree", rules), {rules: costs}, solver)


@final
class FlipStep(_TreeStep):
    """The recursion over pairs of nodes."""

    kind = "flips"

    def best_of(
        self, group: Group, costs: Mapping[int, Tensor], solver: Solver
    ) -> tuple[Tensor, Tensor]:
        """From the leaves to the root, and back along what was chosen."""
        rules, leaves = _grams(costs, group.size, group.size + 1)
        depth = tree_depth(group)
        values = leaves
        turned: list[Tensor] = []
        for level in reversed(range(depth)):
            width = 2**level
            gram = _level(rules, width)
            # (pairs, width, 2, width, 2): the children of n by the children of m
            below = values.reshape(-1, width, 2, width, 2)
            of_left, of_right = below.unbind(2)
            left_left, left_right = of_left.unbind(-1)
            right_left, right_right = of_right.unbind(-1)
            straight = left_left + right_right + gram
            crossed = left_right + right_left - gram
            turned.append(crossed > straight)
            values = torch.maximum(straight, crossed)
        turned.reverse()
        return _flips(turned), values.reshape(-1)


@final
class SplitStep(_TreeStep):
    """The recursion over places and rules."""

    kind = "splits"

    def best_of(
        self, group: Group, costs: Mapping[int, Tensor], solver: Solver
    ) -> tuple[Tensor, Tensor]:
        """All signed orders, place by place."""
        size = group.size
        rules, leaves = _grams(costs, size, 2**size)
        search = _OrderSearch.start(rules)
        search.place(0, tuple(range(size)), leaves, leaves.new_zeros(()), ())
        return search.elements, search.values


@dataclass
class _OrderSearch:
    """All signed orders, depth first; keeps the best of each pair of trees."""

    rules: Tensor
    values: Tensor
    elements: Tensor

    @classmethod
    def start(cls, rules: Tensor) -> _OrderSearch:
        count, size = len(rules), rules.shape[-1]
        worst = rules.new_full((count,), -torch.inf)
        return cls(rules, worst, torch.zeros(count, size, dtype=torch.long))

    def place(
        self,
        place: int,
        free: tuple[int, ...],
        leaves: Tensor,
        gain: Tensor,
        chosen: tuple[int, ...],
    ) -> None:
        """Try every rule that is free at a place.

        Args:
            place: A place of the tree of A.
            free: Rules of B that have no place yet, ascending.
            leaves: ``(pairs, n, n)``: what the leaves of the undecided rules gain, for the choices so far.
            gain: What the rules placed so far gain, ``(pairs,)``.
            chosen: Those rules, signed and counted from 1.
        """
        if not free:
            self._keep(leaves.reshape(-1) + gain, chosen)
            return
        # The first undecided rule of A is the highest bit of its leaves.
        left, right = leaves.chunk(2, 1)
        for k, rule in enumerate(free):
            left_left, left_right = _by_bit(left, k)
            right_left, right_right = _by_bit(right, k)
            product = self.rules[:, place, rule]
            rest = free[:k] + free[k + 1 :]
            number = rule + 1
            straight = left_left + right_right
            self.place(
                place + 1, rest, straight, gain + product, (*chosen, number)
            )
            # A negated rule has its sides the other way round.
            crossed = left_right + right_left
            self.place(
                place + 1, rest, crossed, gain - product, (*chosen, -number)
            )

    def _keep(self, values: Tensor, chosen: tuple[int, ...]) -> None:
        better = values > self.values
        self.values = torch.where(better, values, self.values)
        element = torch.tensor(chosen)
        self.elements = torch.where(better[:, None], element, self.elements)


def _by_bit(columns: Tensor, bit: int) -> tuple[Tensor, Tensor]:
    """Columns whose leaves have 0 and 1 in a bit, the highest being bit 0: two tensors with half the columns."""
    pairs, rows, _ = columns.shape
    split = columns.reshape(pairs, rows, 2**bit, 2, -1)
    zeros, ones = split.unbind(3)
    return zeros.flatten(2), ones.flatten(2)


def _level(rules: Tensor, width: int) -> Tensor:
    """The Gram matrices of the nodes of one level, which has ``width`` nodes and begins behind as many, less one."""
    first = width - 1
    rows = rules.narrow(1, first, width)
    return rows.narrow(2, first, width)


def _flips(turned: list[Tensor]) -> Tensor:
    """The flips along what was chosen.

    Args:
        turned: For each level, from the root, ``(pairs, nodes of A, nodes of B)``: is it better to flip?

    Returns:
        Boolean ``(pairs, 2^D − 1)``.
    """
    sources = torch.zeros(len(turned[0]), 1, dtype=torch.long)
    found = []
    for level in turned:
        flipped = level.gather(2, sources[..., None]).squeeze(-1)
        found.append(flipped)
        # The two children of each node of B, in the order in which they now stand; numbers count inside the level.
        children = torch.stack((2 * sources, 2 * sources + 1), -1)
        swapped = children.flip(-1)
        sources = torch.where(flipped[..., None], swapped, children).flatten(1)
    return torch.cat(found, 1)


def _grams(
    costs: Mapping[int, Tensor], rules: int, leaves: int
) -> tuple[Tensor, Tensor]:
    """The Gram matrices of rules and leaves; zeros where there is none."""
    any_cost = next(iter(costs.values()))
    found = []
    for size in (rules, leaves):
        known = costs.get(size)
        if known is None:
            known = any_cost.new_zeros(len(any_cost), size, size)
        found.append(known)
    return found[0], found[1]


FLIPS = register_step(FlipStep())
SPLITS = register_step(SplitStep())
