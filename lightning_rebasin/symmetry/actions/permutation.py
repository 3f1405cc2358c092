"""Permutations of a network's units: the kind ``"permutation"``, and transforms that are nothing else.

One LongTensor per group, ``new[i] = old[p[i]]``.  For a nested group the tensor has the sizes of its ancestors in
front: ``p[h]`` is the order of the units inside the *new* position ``h`` of the parent.  It is handy to look at the
*flat* form, one index over all members of a group with the ancestors' moves included::

    flat_child[h · n + i] = flat_parent[h] · n + p_child[h, i]

because flat permutations compose and invert like ordinary ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, final

import numpy as np
import torch
from torch import Tensor

from lightning_rebasin.errors import PermutationError, TransformError
from lightning_rebasin.symmetry.actions.action import Action, register_action
from lightning_rebasin.symmetry.actions.gather import gather_units
from lightning_rebasin.symmetry.actions.transform import Transform
from lightning_rebasin.symmetry.spec.spec import PermutationSpec
from lightning_rebasin.symmetry.spec.values import AxisMap, Group


@final
class PermutationAction(Action):
    """Orders of interchangeable units: LongTensors of the group's ``shape``."""

    kind = "permutation"
    rearranges = True
    exact = True

    def identity(self, group: Group) -> Tensor:
        """Everything in its place."""
        order = torch.arange(group.size)
        return (
            order
            if group.parent is None
            else order.expand(group.shape).contiguous()
        )

    def random(self, group: Group, generator: torch.Generator) -> Tensor:
        """A uniformly random order in each instance."""
        rows = [
            torch.randperm(group.size, generator=generator)
            for _ in range(group.instances)
        ]
        return torch.stack(rows).reshape(group.shape)

    def check(self, group: Group, element: Tensor) -> Tensor:
        """A copy on the CPU.

        Raises:
            PermutationError: Not a LongTensor of the group's shape that holds permutations of ``range(size)``.
        """
        if not _holds_integers(element):
            given = (
                element.dtype
                if isinstance(element, Tensor)
                else type(element).__name__
            )
            raise PermutationError(
                f"group {group.id!r}: the order must be a LongTensor, not {given}"
            )
        order = element.detach().to("cpu", torch.long)
        if order.shape != group.shape:
            raise PermutationError(
                f"group {group.id!r}: order has shape {tuple(order.shape)}, expected {group.shape}"
            )
        if not (np.sort(order.numpy(), -1) == np.arange(group.size)).all():
            raise PermutationError(
                f"group {group.id!r}: the order is not a permutation of range({group.size})"
            )
        return order.clone()

    def compose(self, group: Group, after: Tensor, before: Tensor) -> Tensor:
        """``new[i] = old[before[after[i]]]``."""
        return before.gather(-1, after)

    def inverse(self, group: Group, element: Tensor) -> Tensor:
        """``inverse[element[i]] = i``."""
        return torch.argsort(element, -1)

    def apply(
        self, group: Group, element: Tensor, units: Tensor, power: int
    ) -> Tensor:
        """Units in their new order.  Transforms gather all permutations of a tensor at once instead."""
        order = element.reshape(group.instances, group.size, 1).to(
            units.device
        )
        return units.gather(1, order.expand(units.shape))

    def far(self, group: Group) -> Tensor:
        """Rolled by one: every unit leaves its place, which a random order does not promise."""
        return torch.arange(group.size).roll(1).expand(group.shape)

    def trivial(self, group: Group) -> bool:
        """One unit has nowhere to go."""
        return group.size < 2

    def log10_elements(self, size: int) -> float:
        """``log10(size!)``."""
        return math.lgamma(size + 1) / math.log(10)

    def distance(self, group: Group, element: Tensor) -> float:
        """Fraction of the units that leave their place within their instance."""
        return float((element != torch.arange(group.size)).double().mean())


PERMUTATION = register_action(PermutationAction())


@final
class Permutation(Transform, kinds=("permutation",)):
    """One symmetry of a network: an order of the units of every group of a spec.

    Args:
        spec: The spec whose groups are permuted.
        orders: For each group id a LongTensor of the group's ``shape``; the last dimension holds permutations of
            ``range(size)``.  Groups left out keep their order.

    Raises:
        PermutationError: A tensor is not a permutation, or names an unknown group.

    Example:
        >>> spec = PermutationSpec.from_table({"w": ("h", None)}, {"w": (3, 1)})
        >>> p = Permutation(spec, {"h": torch.tensor([2, 0, 1])})
        >>> p.apply({"w": torch.tensor([[10.0], [20.0], [30.0]])})["w"].flatten().tolist()
        [30.0, 10.0, 20.0]
        >>> p.compose(p.inverse()).is_identity
        True
    """

    error: ClassVar[type[TransformError]] = PermutationError
    format: ClassVar[str] = "lightning-rebasin-permutation"
    kept_as: ClassVar[str] = "orders"

    def __init__(
        self, spec: PermutationSpec, orders: Mapping[str, Tensor]
    ) -> None:
        for group in spec.groups.values():
            if group.kind != "permutation":
                raise PermutationError(
                    f"group {group.id!r} is of the kind {group.kind!r}: use Transform for this spec"
                )
        super().__init__(spec, orders)

    @property
    def orders(self) -> Mapping[str, Tensor]:
        """The order of every group: LongTensors of the groups' shapes."""
        return self.elements

    @classmethod
    def from_flat(
        cls, spec: PermutationSpec, flat: Mapping[str, Tensor]
    ) -> Permutation:
        """Inverse of :meth:`flat`: build a permutation from one flat index per group.

        Raises:
            PermutationError: A flat index breaks the nesting of the groups.
        """
        if unknown := set(flat) - set(spec.groups):
            raise PermutationError(
                f"the spec has no group {sorted(unknown)[0]!r}"
            )
        given = [group for group in spec.groups.values() if group.id in flat]
        permutation = cls(
            spec,
            {group.id: _order_of(group, flat[group.id]) for group in given},
        )
        for group in given:
            if group.parent is None:
                continue  # checked as an order already
            if not torch.equal(
                permutation.flat(group.id), flat[group.id].reshape(-1).cpu()
            ):
                raise _torn(group)
        return permutation

    @property
    def moved(self) -> Mapping[str, float]:
        """Fraction of the members of each group that change place, their parents' moves included."""
        found = {}
        for group in self.orders:
            order = self.flat(group)
            found[group] = float(
                (order != torch.arange(len(order))).double().mean()
            )
        return found

    def apply_map(self, tensor: Tensor, axis_map: AxisMap) -> Tensor:
        """Move the positions of one tensor: ``new[index[m]] = old[index[flat[m]]]`` for every component."""
        return gather_units(tensor, axis_map, self.flat)


def _holds_integers(value: object) -> bool:
    if not isinstance(value, Tensor) or value.dtype is torch.bool:
        return False
    return not (value.is_floating_point() or value.is_complex())


def _order_of(group: Group, flat: Tensor) -> Tensor:
    """The order of a group inside its parents: a flat index without the parents' moves."""
    if flat.numel() != group.members:
        raise PermutationError(
            f"group {group.id!r}: the flat index has {flat.numel()} entries, not {group.members}"
        )
    if group.parent is None:
        return flat.reshape(group.size)
    index = flat.cpu().reshape(group.instances, group.size)
    # All units of an instance must come from one and the same instance.
    origin = index // group.size
    if not bool((origin == origin[:, :1]).all()):
        raise _torn(group)
    return (index % group.size).reshape(group.shape)


def _torn(group: Group) -> PermutationError:
    return PermutationError(
        f"the flat index of group {group.id!r} does not keep its parent's members together"
    )
