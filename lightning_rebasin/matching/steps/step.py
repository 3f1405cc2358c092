"""A step: the best element of one group, given how well its units fit.

Whatever the kind, a step solves many small problems of one shape at once: for nested groups one per pair of parent
members, because how well head ``h`` fits head ``h'`` depends on the best element for that pair.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import ClassVar

from torch import Tensor

from lightning_rebasin.assignment.solve import Solver
from lightning_rebasin.errors import ConfigurationError
from lightning_rebasin.symmetry.spec.values import Group


class Step(ABC):
    """The best element of one kind of group."""

    #: Name of the kind, as in ``Group.kind``.
    kind: ClassVar[str]

    @abstractmethod
    def best(self, costs: Tensor, solver: Solver) -> tuple[Tensor, Tensor]:
        """Solve a batch of independent problems.

        Args:
            costs: Float64.  ``(problems, size, size)`` with ``costs[k, i, j] = ⟨A_i, B_j⟩`` for kinds whose action asks
                for a matrix, ``(problems, size)`` with ``⟨A_i, B_i⟩`` for those that ask for the diagonal.
            solver: Assignment solver, for kinds that need one.

        Returns:
            The element of each problem, ``(problems, …)``, and the inner product that it reaches, ``(problems,)``.
        """

    def best_of(
        self, group: Group, costs: Mapping[int, Tensor], solver: Solver
    ) -> tuple[Tensor, Tensor]:
        """The same for a kind that acts on several sets of things, such as the rules and the leaves of a tree.

        Args:
            group: The group.
            costs: For each set that counts its costs, by the number of its units.
            solver: Assignment solver.
        """
        return self.best(costs[group.size], solver)


_STEPS: dict[str, Step] = {}


def register_step(step: Step) -> Step:
    """Make the matching able to choose elements of a kind.

    Raises:
        ConfigurationError: The kind has a step already.
    """
    if step.kind in _STEPS:
        raise ConfigurationError(
            f"the kind {step.kind!r} has a matching step already"
        )
    _STEPS[step.kind] = step
    return step


@contextmanager
def registered_step(step: Step) -> Iterator[Step]:
    """A step that is known inside a ``with`` block only: for tests and experiments."""
    register_step(step)
    try:
        yield step
    finally:
        del _STEPS[step.kind]


def step_of(group: Group) -> Step:
    """The step of a group's kind.

    Raises:
        ConfigurationError: Nobody registered one.
    """
    step = _STEPS.get(group.kind)
    if step is None:
        known = ", ".join(map(repr, sorted(_STEPS)))
        raise ConfigurationError(
            f"group {group.id!r} is of the kind {group.kind!r}, which the matching cannot choose (it knows {known})"
        )
    return step
