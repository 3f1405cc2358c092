"""What one element of a symmetry group does to weights: the one place that dispatches on a group's kind.

A group of a spec has a *kind* (``"permutation"``, ``"sign"``, …).  An :class:`Action` knows everything about one kind:
how to make elements, how they multiply and invert, what they do to the units of a tensor, and what the matching must
know to choose the best one.  Everything else in the package handles elements without looking at them, so a new kind is
one file here and one step in ``matching/steps/``.

An element is one tensor for all instances of its group.  Instances come first, in the order of the parent's members:
a permutation of 8 units is a LongTensor ``(8,)``; of 32 units inside each of 4 heads, ``(4, 32)``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lightning_rebasin.errors import SpecError, TransformError
from lightning_rebasin.symmetry.spec.values import Group, count_kind

#: What a step must know to choose an element: ``⟨A_i, B_j⟩`` for all units of an instance, or only for ``i = j``.
Cost = Literal["matrix", "diagonal"]


class Action(ABC):
    """One kind of symmetry.  Elements are tensors; instances come first, see the module's docstring."""

    #: Name of the kind, as in ``Group.kind`` and in files.
    kind: ClassVar[str]
    #: What the matching has to compute to choose an element.
    cost: ClassVar[Cost] = "matrix"
    #: Whether units only change place, so that an element is an order of them.
    rearranges: ClassVar[bool] = False
    #: Whether elements may stretch what is written and shrink what is read, so that lengths mean nothing.
    stretches: ClassVar[bool] = False
    #: Whether canonical gauge leaves such lengths as they are, because they say how much a layer counts.
    keeps_lengths: ClassVar[bool] = False
    #: Whether an element and its inverse, applied in turn, give back the same bits.
    exact: ClassVar[bool] = False

    @abstractmethod
    def identity(self, group: Group) -> Tensor:
        """The element that changes nothing."""

    @abstractmethod
    def random(self, group: Group, generator: torch.Generator) -> Tensor:
        """An element that moves every unit if it can: what the gate draws.

        Args:
            group: The group.
            generator: CPU generator; the same state gives the same element.
        """

    @abstractmethod
    def check(self, group: Group, element: Tensor) -> Tensor:
        """A private copy of an element that somebody gave.

        Raises:
            TransformError: It is not an element of the group; the message names the group.
        """

    @abstractmethod
    def compose(self, group: Group, after: Tensor, before: Tensor) -> Tensor:
        """``after ∘ before``, instance by instance."""

    @abstractmethod
    def inverse(self, group: Group, element: Tensor) -> Tensor:
        """The element that undoes ``element``, instance by instance."""

    @abstractmethod
    def apply(
        self, group: Group, element: Tensor, units: Tensor, power: int
    ) -> Tensor:
        """What becomes of the units of one tensor.

        Args:
            group: The group.
            element: An element of it.
            units: ``(instances, size, rest)``: what each unit finds in the tensor, any dtype and device.  Kinds that
                act on several sets of things tell by the second number which set these are.
            power: +1 where units are written; −1 where they are read by a map that must undo the change (a scale s is
                divided out).  Kinds that are their own contragredient (permutations, signs, rotations) ignore it.

        Returns:
            The same shape.
        """

    def far(self, group: Group) -> Tensor:
        """An element far from the identity, always the same: the gate's negative control."""
        return self.random(group, torch.Generator().manual_seed(0))

    def log10_elements(self, size: int) -> float:
        """``log10`` of the number of elements of one instance of ``size`` units; 0 for kinds that are not finite."""
        del size
        return 0.0

    def trivial(self, group: Group) -> bool:
        """Whether the identity is the only element of the group."""
        del group
        return False

    def latent(self, group: Group) -> Tensor | None:
        """Where learning starts: the float32 tensor that :meth:`from_latent` takes to the identity.

        ``None`` for kinds whose elements cannot be learned by gradient descent.
        """
        del group
        return None

    def from_latent(self, group: Group, latent: Tensor) -> Tensor:
        """The element that a latent tensor stands for, differentiably.

        Args:
            group: The group.
            latent: Any values in the shape of :meth:`latent`.
        """
        raise TransformError(
            f"elements of the kind {self.kind!r} cannot be learned ({group.id!r}, {latent.shape})"
        )

    def balance(self, group: Group, plus: Tensor, minus: Tensor) -> Tensor:
        """The element that gives what is written and what is read equal lengths, of kinds that stretch.

        Args:
            group: The group.
            plus: Inner products of the units with each other where they are written, float64 ``(instances, size,
                size)``.
            minus: The same where they are read.
        """
        del plus, minus
        return self.identity(group)

    @abstractmethod
    def distance(self, group: Group, element: Tensor) -> float:
        """How far from the identity, 0 for the identity itself and 1 for "everything moves"."""


_ACTIONS: dict[str, Action] = {}


def register_action(action: Action) -> Action:
    """Make a kind known.

    Args:
        action: What its elements do.

    Returns:
        The action.

    Raises:
        SpecError: The kind is known already.
    """
    if action.kind in _ACTIONS:
        raise SpecError(f"the kind {action.kind!r} has an action already")
    _ACTIONS[action.kind] = action
    count_kind(action.kind, action.log10_elements)
    return action


def registered_kinds() -> frozenset[str]:
    """The names of all kinds that have an action."""
    return frozenset(_ACTIONS)


@contextmanager
def registered_action(action: Action) -> Iterator[Action]:
    """A kind that is known inside a ``with`` block only: for tests and experiments."""
    register_action(action)
    try:
        yield action
    finally:
        del _ACTIONS[action.kind]


def action_of(group: Group) -> Action:
    """The action of a group's kind.

    Raises:
        TransformError: Nobody registered the kind.

    Example:
        >>> import lightning_rebasin
        >>> action_of(Group("h", 3)).identity(Group("h", 3)).tolist()
        [0, 1, 2]
    """
    action = _ACTIONS.get(group.kind)
    if action is None:
        known = ", ".join(map(repr, sorted(_ACTIONS)))
        raise TransformError(
            f"group {group.id!r} is of the kind {group.kind!r}, for which no action is registered (known: {known})"
        )
    return action
