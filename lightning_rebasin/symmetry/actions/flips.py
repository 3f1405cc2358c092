"""Flips of subtrees: the kind ``"flips"``, the symmetries of a binary tree whose nodes decide between two sides.

A soft tree sends ``σ(z)`` of an example to the left of a node and ``σ(−z) = 1 − σ(z)`` to its right.  So negating a
node's rule, z → −z, and swapping everything below it changes nothing.  The flips of all inner nodes together generate
every symmetry of the tree's shape, ``2^(number of inner nodes)`` of them.

A group of this kind has one unit for each inner node, ``2^D − 1`` in heap order (the children of n are 2n + 1 and
2n + 2).  It acts on two sets of things, told apart by their number:

- rules, one for each inner node: they change place, and those of flipped nodes change sign;
- leaves, one more than inner nodes: they change place.

An element is a boolean for each inner node of the *new* tree: are its two sides the other way round?  With the flip of
the root only, the new tree of depth 2 is::

          −r0                       r0
         ┌─┴─┐                     ┌─┴─┐
        r2   r1        from       r1   r2
       ┌┴┐   ┌┴┐                 ┌┴┐   ┌┴┐
       C D   A B                 A B   C D

A depth of 1 is a single rule that may be negated if its two leaves are swapped: the end of a decision list.

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
class FlipAction(Action):
    """Flips: boolean tensors of the group's ``shape``, one entry for each inner node of each tree."""

    kind = "flips"
    exact = True

    def identity(self, group: Group) -> Tensor:
        """No node is flipped."""
        tree_depth(group)
        return torch.zeros(group.shape, dtype=torch.bool)

    def random(self, group: Group, generator: torch.Generator) -> Tensor:
        """Each node is flipped or not, with even chances."""
        return torch.randint(2, group.shape, generator=generator).bool()

    def far(self, group: Group) -> Tensor:
        """All nodes are flipped: the mirrored tree."""
        return torch.ones(group.shape, dtype=torch.bool)

    def check(self, group: Group, element: Tensor) -> Tensor:
        """A copy on the CPU.

        Raises:
            TransformError: Not a boolean tensor of the group's shape, or the size is not that of a binary tree.
        """
        tree_depth(group)
        if element.shape != group.shape or element.dtype != torch.bool:
            raise TransformError(
                f"group {group.id!r}: flips must be a boolean tensor of shape {group.shape}, not {element.dtype} of "
                f"shape {tuple(element.shape)}"
            )
        return element.detach().cpu().clone()

    def compose(self, group: Group, after: Tensor, before: Tensor) -> Tensor:
        """A node is flipped if one of the two flips it, where ``before`` sees it in its old place."""
        places = node_sources(after)[..., : group.size]
        return after ^ before.gather(-1, places)

    def inverse(self, group: Group, element: Tensor) -> Tensor:
        """The same flips, each at the place where its node was."""
        places = node_sources(element)[..., : group.size]
        return torch.zeros_like(element).scatter(-1, places, element)

    def apply(
        self, group: Group, element: Tensor, units: Tensor, power: int
    ) -> Tensor:
        """Rules change place and sign, leaves change place.

        Raises:
            TransformError: The units are neither the inner nodes nor the leaves of the tree.
        """
        flips = element.reshape(group.instances, group.size)
        sources = node_sources(flips).to(units.device)
        size = group.size
        if units.shape[1] == size:
            signs = torch.where(flips, -1, 1)
            signs = signs.to(units.device, units.dtype)
            moved = _gather(units, sources[:, :size])
            return moved * signs[..., None]
        if units.shape[1] == size + 1:
            leaves = sources[:, size:] - size
            return _gather(units, leaves)
        raise TransformError(
            f"group {group.id!r}: flips move {group.size} rules or {group.size + 1} leaves, not {units.shape[1]} units"
        )

    def log10_elements(self, size: int) -> float:
        """``size · log10(2)``."""
        return size * math.log10(2)

    def distance(self, group: Group, element: Tensor) -> float:
        """Fraction of the nodes that are flipped."""
        return float(element.double().mean())


FLIPS = register_action(FlipAction())


def tree_depth(group: Group) -> int:
    """Depth of the binary tree whose inner nodes are the units of a group.

    Raises:
        TransformError: No perfect binary tree has that many inner nodes.
    """
    depth = (group.size + 1).bit_length() - 1
    if 2**depth != group.size + 1:
        raise TransformError(
            f"group {group.id!r}: flips need 2^depth − 1 inner nodes (1, 3, 7, ...), not {group.size}"
        )
    return depth


def node_sources(flips: Tensor) -> Tensor:
    """Where each node of the new tree was in the old one, inner nodes first and then leaves, in heap order.

    Args:
        flips: Boolean ``(..., 2^D − 1)``.

    Returns:
        LongTensor ``(..., 2^(D+1) − 1)``.

    Example:
        >>> node_sources(torch.tensor([True, False, False])).tolist()
        [0, 2, 1, 5, 6, 3, 4]
    """
    level = torch.zeros(*flips.shape[:-1], 1, dtype=torch.long)
    levels = [level]
    first = 0
    while first < flips.shape[-1]:
        width = level.shape[-1]
        flipped = flips[..., first : first + width].cpu()
        left, right = 2 * level + 1, 2 * level + 2
        first_child = torch.where(flipped, right, left)
        second_child = torch.where(flipped, left, right)
        # (..., width, 2): the two children of each node, then flat in heap order
        children = torch.stack((first_child, second_child), -1)
        level = children.flatten(-2)
        levels.append(level)
        first += width
    return torch.cat(levels, -1)


def _gather(units: Tensor, sources: Tensor) -> Tensor:
    """``new[t, n] = old[t, sources[t, n]]``."""
    return units.gather(1, sources[..., None].expand(units.shape))
