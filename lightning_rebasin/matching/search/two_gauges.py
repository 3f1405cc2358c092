"""Which lengths decide an order: balanced ones, or those that the networks were trained with?

Where units may be scaled, both networks are balanced: what a unit writes becomes as long as what reads it.  That makes
a scaled copy recognisable, but it also decides how much each layer counts, and trained networks often have better
lengths than equal ones: two LeNets whose order was found in balanced lengths had a barrier of .137, in their own
lengths .036; for two perceptrons it was .038 and .052.  No objective ranks the two orders by itself, for each is the
best in its own lengths.  What both lengths agree on does: an order that is nearly as good in the other lengths
describes the networks, one that is far worse there describes its lengths.  So the geometric mean of both objectives
decides.  A scaled copy is far worse in lengths of its own, so that balanced lengths still find it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from lightning_rebasin.matching.result import Descent, MatchResult
from lightning_rebasin.symmetry.actions.action import action_of
from lightning_rebasin.symmetry.actions.balance import (
    back_from_balance,
    balancing,
)
from lightning_rebasin.symmetry.actions.transform import Transform
from lightning_rebasin.symmetry.spec.gauge import fold
from lightning_rebasin.symmetry.spec.spec import PermutationSpec

State = Mapping[str, Tensor]
#: ``Σ⟨A, T(B)⟩`` in some lengths.
Objective = Callable[[Transform], float]
#: What a descent from the order of the trained lengths is called.
TRAINED = "trained lengths"


@dataclass(frozen=True, eq=False)
class TwoGauges:
    """Both networks, twice, and the way between.

    Args:
        spec: What may be changed.
        given: As they come.
        balanced: With equal lengths on both sides of every unit.
        balance: What balances the source.
        home: What leads from balanced networks to the lengths of the reference.
    """

    spec: PermutationSpec
    given: tuple[State, State]
    balanced: tuple[State, State]
    balance: Transform
    home: Transform

    @classmethod
    def of(
        cls, spec: PermutationSpec, reference: State, source: State
    ) -> TwoGauges:
        """Both networks as they come.

        Raises:
            StateDictError: A tensor is missing, extra or has another shape.
            NonFiniteError: A tensor holds NaN or infinity.
        """
        spec.check_state(source, "source", finite=True)
        spec.check_state(reference, "reference", finite=True)
        # One after the other: of a large network no copy is kept that is not needed.
        first = balancing(spec, fold(spec, reference))
        second = balancing(spec, fold(spec, source))
        return cls(
            spec=spec,
            given=(reference, source),
            balanced=(first.apply(reference), second.apply(source)),
            balance=second,
            home=back_from_balance(spec, fold(spec, reference)),
        )

    def trained(self) -> tuple[State, State]:
        """Both networks with the lengths that they were trained with."""
        first, second = self.given
        return fold(self.spec, first), fold(self.spec, second)

    def to_balanced(self, transform: Transform) -> Transform:
        """A transform of the source as it is, as one between balanced networks."""
        ahead = self.home.inverse().compose(transform)
        return ahead.compose(self.balance.inverse())

    def from_balanced(self, transform: Transform) -> Transform:
        """Inverse of :meth:`to_balanced`."""
        return self.home.compose(transform).compose(self.balance)


def stretches(spec: PermutationSpec) -> bool:
    """Whether some group changes lengths, so that there are two gauges to choose from."""
    return any(action_of(g).stretches for g in spec.groups.values())


def better_of(
    found: MatchResult,
    other: Transform,
    descent: Descent,
    balanced: Objective,
    trained: Objective,
) -> MatchResult:
    """The matching in balanced lengths, or another one that both lengths together prefer.

    Args:
        found: The best in balanced lengths.
        other: The best in the lengths that the networks were trained with.
        descent: How that ended, for the report.
        balanced: The objective in balanced lengths.
        trained: The objective in trained lengths.

    Returns:
        ``found``, or a result with ``other``, whose objective is still that of balanced lengths.
    """
    descents = (*found.descents, descent)
    objective = balanced(other)
    products = (
        found.objective * trained(found.transform),
        objective * trained(other),
    )
    # A matching is never worse than doing nothing, and a product of two negative numbers means nothing.
    sound = objective >= found.identity_objective and objective > 0
    if sound and trained(other) > 0 and products[1] > products[0]:
        return replace(
            found, transform=other, objective=objective, descents=descents
        )
    return replace(found, descents=descents)
