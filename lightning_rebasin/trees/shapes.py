"""The shapes of a soft tree: which rules an example meets on its way to each leaf.

A *rule* sends a share ``σ(z)`` of an example to its left and ``1 − σ(z)`` to its right, ``z = wᵀx + b``.  The share
that arrives at a leaf is the product of the shares on the way.  All of it is done with logarithms,

    ``log σ(z) = logsigmoid(z)``        ``log(1 − σ(z)) = logsigmoid(z) − z``

because in half precision ``1 − σ(z)`` is exactly 0 from z = 8 on, and a product that has become 0 has no gradient.

A shape knows the numbers of rules and leaves, how logits become shares, and how many leaves lie below each rule::

    non_oblivious        oblivious               decision_list          modified_decision_list
          0                  0                      0                      0
        ┌─┴─┐              ┌─┴─┐                  ┌─┴─┐                  ┌─┴─┐
        1   2              1   1                  A   1                  A   1
       ┌┴┐ ┌┴┐            ┌┴┐ ┌┴┐                    ┌┴┐                    ┌┴┐
       A B C D            A B C D                    B C                    B 0

Loops run over the depth only, never over trees or leaves.

Source: Kanoh and Sugiyama, "Linear Mode Connectivity in Differentiable Tree Ensembles", ICLR 2025.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, final, get_args

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from lightning_rebasin.errors import ConfigurationError

TreeKind = Literal[
    "non_oblivious", "oblivious", "decision_list", "modified_decision_list"
]


@dataclass(frozen=True)
class TreeShape(ABC):
    """What all trees of an ensemble look like.

    Args:
        depth: How many rules an example meets at most.
    """

    depth: int

    @property
    @abstractmethod
    def rules(self) -> int:
        """Number of rules in a tree."""

    @property
    @abstractmethod
    def leaves(self) -> int:
        """Number of leaves with values of their own."""

    @abstractmethod
    def log_shares(self, logits: Tensor) -> Tensor:
        """How much of an example arrives at each leaf.

        Args:
            logits: ``(..., rules, batch)``, floating; examples come last, so that all work is on long rows.

        Returns:
            ``log μ``, ``(..., leaves, batch)``.
        """

    @abstractmethod
    def leaves_below(self) -> Tensor:
        """Float64 ``(rules,)``: the number of leaves that each rule decides about."""


@final
class NonOblivious(TreeShape):
    """A perfect binary tree with a rule at every inner node, in heap order: the children of n are 2n + 1, 2n + 2."""

    @property
    def rules(self) -> int:
        """``2^depth − 1``."""
        return (1 << self.depth) - 1

    @property
    def leaves(self) -> int:
        """``2^depth``."""
        return 1 << self.depth

    def log_shares(self, logits: Tensor) -> Tensor:
        """Level by level; each node of a level has two children in the next."""
        to_left, to_right = _log_sides(logits)
        shares = torch.zeros_like(logits[..., :1, :])
        for level in range(self.depth):
            first, width = 2**level - 1, 2**level
            left = shares + to_left.narrow(-2, first, width)
            right = shares + to_right.narrow(-2, first, width)
            # (..., nodes, 2, batch), then the children in a row
            shares = torch.stack((left, right), -2).flatten(-3, -2)
        return shares

    def leaves_below(self) -> Tensor:
        """``2^(depth − level)``."""
        levels = torch.arange(self.depth)
        return (2.0 ** (self.depth - levels.double())).repeat_interleave(
            2**levels
        )


@final
class Oblivious(TreeShape):
    """A perfect binary tree in which all nodes of a level share their rule; the first rule is a leaf's highest bit."""

    @property
    def rules(self) -> int:
        """One for each level."""
        return self.depth

    @property
    def leaves(self) -> int:
        """``2^depth``."""
        return 1 << self.depth

    def log_shares(self, logits: Tensor) -> Tensor:
        """Level by level; every node of a level adds the same two numbers."""
        to_left, to_right = _log_sides(logits)
        shares = torch.zeros_like(logits[..., :1, :])
        for level in range(self.depth):
            left = shares + to_left.narrow(-2, level, 1)
            right = shares + to_right.narrow(-2, level, 1)
            shares = torch.stack((left, right), -2).flatten(-3, -2)
        return shares

    def leaves_below(self) -> Tensor:
        """Every rule decides about all leaves."""
        return torch.full(
            (self.depth,), float(self.leaves), dtype=torch.float64
        )


@final
class DecisionList(TreeShape):
    """Rules in a row: the left of each is a leaf, the right leads on, and the last right is a leaf too."""

    @property
    def rules(self) -> int:
        """One for each step."""
        return self.depth

    @property
    def leaves(self) -> int:
        """One for each rule, and one at the end."""
        return self.depth + 1

    def log_shares(self, logits: Tensor) -> Tensor:
        """The shares that leave at each rule, and what is left."""
        leaving, left_over = _list_shares(logits)
        return torch.cat((leaving, left_over), -2)

    def leaves_below(self) -> Tensor:
        """The later, the fewer."""
        return self.leaves - torch.arange(self.depth, dtype=torch.float64)


@final
class ModifiedDecisionList(TreeShape):
    """A decision list whose last leaf is fixed to 0: what never turned left counts for nothing."""

    @property
    def rules(self) -> int:
        """One for each step."""
        return self.depth

    @property
    def leaves(self) -> int:
        """One for each rule."""
        return self.depth

    def log_shares(self, logits: Tensor) -> Tensor:
        """The shares that leave at each rule."""
        return _list_shares(logits)[0]

    def leaves_below(self) -> Tensor:
        """The leaf that is fixed counts: the rule above it decides between it and another."""
        return self.depth + 1 - torch.arange(self.depth, dtype=torch.float64)


SHAPES: dict[str, type[TreeShape]] = {
    "non_oblivious": NonOblivious,
    "oblivious": Oblivious,
    "decision_list": DecisionList,
    "modified_decision_list": ModifiedDecisionList,
}


def tree_shape(kind: str, depth: int) -> TreeShape:
    """The shape of a kind of tree.

    Args:
        kind: One of :data:`TreeKind`.
        depth: How many rules an example meets at most.

    Raises:
        ConfigurationError: The kind is unknown, or the depth is not positive.

    Example:
        >>> shape = tree_shape("non_oblivious", 2)
        >>> shape.rules, shape.leaves, shape.leaves_below().tolist()
        (3, 4, [4.0, 2.0, 2.0])
        >>> shape.log_shares(torch.zeros(3, 1)).exp().flatten().tolist()
        [0.25, 0.25, 0.25, 0.25]
    """
    if kind not in SHAPES:
        listed = ", ".join(map(repr, get_args(TreeKind)))
        raise ConfigurationError(
            f"kind={kind!r} is not a kind of soft tree; use one of {listed}"
        )
    if depth < 1:
        raise ConfigurationError(f"depth must be at least 1, not {depth}")
    return SHAPES[kind](depth)


def _log_sides(logits: Tensor) -> tuple[Tensor, Tensor]:
    """``log σ(z)`` and ``log(1 − σ(z))``."""
    left = logsigmoid(logits)
    # Subtracted here, before anything is added: where log σ(z) is nearly z, the two cancel exactly.
    return left, left - logits


def _list_shares(logits: Tensor) -> tuple[Tensor, Tensor]:
    """What leaves a list at each rule, ``(..., rules, batch)``, and what is left at its end, ``(..., 1, batch)``."""
    to_left, to_right = _log_sides(logits)
    passed = torch.zeros_like(logits[..., :1, :])
    leaving = []
    for rule in range(logits.shape[-2]):
        leaving.append(passed + to_left.narrow(-2, rule, 1))
        passed = passed + to_right.narrow(-2, rule, 1)
    return torch.cat(leaving, -2), passed
