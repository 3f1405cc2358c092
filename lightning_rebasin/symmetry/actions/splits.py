"""The order and the signs of the rules of an oblivious tree: the kind ``"splits"``.

In an oblivious tree all nodes of one level share one rule, so a leaf is a word of D bits: bit i says on which side of
rule i it lies (0 is left).  The rules may be asked in any order, and each may be negated, if the leaves follow:
``2^D · D!`` symmetries, the signed permutations of D things.

A group of this kind has one unit for each rule.  It acts on two sets of things, told apart by their number:

- D rules: they change place, and negated ones change sign;
- 2^D leaves, the first rule being the highest bit: they change place.

An element holds, for each place of the new tree, the number of the rule that comes there, counted from 1, with its
sign: ``[-2, 1]`` asks the second rule first, negated.  Its new leaf ``01`` lies left of −z₂, so right of z₂, and right
of z₁: it is the old leaf ``11``.

Source: Kanoh and Sugiyama, "Linear Mode Connectivity in Differentiable Tree Ensembles", ICLR 2025, section 3.
"""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor

from lightning_rebasin.errors import TransformError
from lightning_rebasin.symmetry.actions.action import Action, register_action
from lightning_rebasin.symmetry.spec.values import Group


@final
class SplitAction(Action):
    """Signed orders of rules: LongTensors of the group's ``shape`` that hold ±1 … ±size."""

    kind = "splits"
    exact = True

    def identity(self, group: Group) -> Tensor:
        """Every rule in its place, with its own sign."""
        return (torch.arange(group.size) + 1).expand(group.shape).contiguous()

    def random(self, group: Group, generator: torch.Generator) -> Tensor:
        """A uniformly random order with random signs in each tree."""
        keys = torch.rand(group.shape, generator=generator)
        signs = torch.randint(2, group.shape, generator=generator) * 2 - 1
        return (keys.argsort(-1) + 1) * signs

    def far(self, group: Group) -> Tensor:
        """All rules move on by one and are negated."""
        return -self.identity(group).roll(1, -1)

    def check(self, group: Group, element: Tensor) -> Tensor:
        """A copy on the CPU.

        Raises:
            TransformError: Not integers of the group's shape that are ±1 … ±size, each number once.
        """
        whole = not element.is_floating_point() and not element.is_complex()
        fits = whole and element.shape == group.shape
        if fits:
            given = element.cpu().abs()
            numbers, _ = given.sort(-1)
            wanted = self.identity(group)
            fits = torch.equal(numbers, wanted.to(numbers.dtype))
        if not fits:
            raise TransformError(
                f"group {group.id!r}: splits must hold ±1 to ±{group.size}, each number once, in the shape "
                f"{group.shape}"
            )
        return element.detach().to("cpu", torch.long).clone()

    def compose(self, group: Group, after: Tensor, before: Tensor) -> Tensor:
        """``new = sign(after) · before[|after|]``."""
        return before.gather(-1, after.abs() - 1) * after.sign()

    def inverse(self, group: Group, element: Tensor) -> Tensor:
        """Each rule back to its place, with the same sign."""
        signed = self.identity(group) * element.sign()
        return torch.zeros_like(element).scatter(-1, element.abs() - 1, signed)

    def apply(
        self, group: Group, element: Tensor, units: Tensor, power: int
    ) -> Tensor:
        """Rules change place and sign, leaves change place.

        Raises:
            TransformError: The units are neither the rules nor the leaves of the tree.
        """
        splits = element.reshape(group.instances, group.size)
        # D = 1 has one rule and two leaves, so the two numbers never agree.
        if units.shape[1] == group.size:
            sources = splits.abs() - 1
            signs = splits.sign().to(units.device, units.dtype)
            moved = _gather(units, sources)
            return moved * signs[..., None]
        if units.shape[1] == 2**group.size:
            return _gather(units, leaf_sources(splits))
        raise TransformError(
            f"group {group.id!r}: splits move {group.size} rules or {2**group.size} leaves, not {units.shape[1]} units"
        )

    def log10_elements(self, size: int) -> float:
        """``log10(2^size · size!)``."""
        return size * math.log10(2) + math.lgamma(size + 1) / math.log(10)

    def distance(self, group: Group, element: Tensor) -> float:
        """Fraction of the rules that change their place or their sign."""
        return float((element != self.identity(group)).double().mean())


SPLITS = register_action(SplitAction())


def leaf_sources(splits: Tensor) -> Tensor:
    """Where each leaf of the new tree was in the old one.

    Args:
        splits: LongTensor ``(..., D)`` of ±1 … ±D.

    Returns:
        LongTensor ``(..., 2^D)``.

    Example:
        >>> leaf_sources(torch.tensor([-2, 1])).tolist()
        [1, 3, 0, 2]
    """
    depth = splits.shape[-1]
    leaves = torch.arange(2**depth)
    sources = torch.zeros_like(leaves)
    for place in range(depth):
        rule = splits[..., place, None].cpu()
        negated = (rule < 0).long()
        shift = depth - 1 - place
        bit = (leaves >> shift) & 1
        # A negated rule has its sides the other way round.
        old_bit = bit ^ negated
        old_shift = depth - rule.abs()
        sources = sources + (old_bit << old_shift)
    return sources


def _gather(units: Tensor, sources: Tensor) -> Tensor:
    """``new[t, n] = old[t, sources[t, n]]``."""
    places = sources.to(units.device)[..., None]
    return units.gather(1, places.expand(units.shape))
