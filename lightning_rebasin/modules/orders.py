"""Permutations learned together with elements of continuous groups: the straight-through estimator beside them.

The elements E of the continuous groups act on the source first, in its own order of units; then a permutation π moves
the units, together with whatever was learned inside them.  What steers π are *pulls* L, one number for every weight on
which a permutation acts, 0 at first.  Every step projects, by weight matching from the last π,

    ``π = argmax ⟨A + t·E(B) + s·L, π(E(B))⟩``,    s = the root mean square of the tensor,

and passes the gradient at ``π(E(B))`` to L as if the projection were the identity
(:mod:`lightning_rebasin.matching.straight_through`).

The published estimator has t = 0: its free parameters start at the reference A.  Where activations found the start, the
first projection would then fall back to weight matching and undo it (on two character GPTs it moved 94 % of the
units).  So t is the smallest share of the source itself for which the start is its own projection: 0 if weights found
it.  Units for which the weights speak against the start are the first ones to give way to their pulls.

Permutations settle after a share of the training, :data:`SETTLED`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import final

from torch import Tensor, nn

from lightning_rebasin.matching.importance import weighted
from lightning_rebasin.matching.search.weight import WeightMatcher
from lightning_rebasin.symmetry.actions.permutation import Permutation
from lightning_rebasin.symmetry.edit.permuting import permuting
from lightning_rebasin.symmetry.spec.spec import PermutationSpec

State = Mapping[str, Tensor]
#: After this share of the training permutations stay, and only the continuous elements go on learning.  Every unit that
#: moves late sets them back: two character GPTs have a barrier of .31 after 2500 steps that go on moving units, and of
#: .27 if they settle after 300 (both with a step size that stays).  With one that falls it is .195 after 300 and .197
#: after 1000 of 2500 steps, and of two Llamas .337 and .333.
SETTLED = 0.4
#: The same in steps, for a training without end.
SETTLED_STEPS = 300
#: Shares t that are tried; with the last one nothing but the source itself counts.
_SHARES = (0.0, 0.125, 0.25, 0.375, 0.5, 0.75, 1.0, 2.0, 4.0, 8.0, 16.0)


@final
class LearnedOrders(nn.Module):
    """The permutation groups of a spec with other kinds.

    Args:
        spec: The spec.
        reference: The reference: every tensor.
        started: The source under the start: every tensor.
        parameters: Names of the tensors that the loss depends on.
    """

    def __init__(
        self,
        spec: PermutationSpec,
        reference: State,
        started: State,
        parameters: tuple[str, ...],
    ) -> None:
        super().__init__()
        self.spec = permuting(spec)
        #: What the last projection found.
        self.permutation = Permutation.identity(self.spec)
        self._sizes: dict[str, float] = {}
        pulls = []
        for name in parameters:
            if name in self.spec.maps:
                tensor = started[name]
                self._sizes[name] = float(tensor.square().mean().sqrt())
                pulls.append(nn.Parameter(tensor.new_zeros(tensor.shape)))
        self.pulls = nn.ParameterList(pulls)
        self.share = _share(self.spec, reference, started)

    @property
    def learns(self) -> bool:
        """Whether there is anything to move."""
        return bool(self.spec.groups) and len(self.pulls) > 0

    def move(self, step: int, steps: float) -> bool:
        """Whether this step projects: there is something to move, and permutations have not settled.

        Args:
            step: Optimizer steps taken.
            steps: Steps of the whole training, perhaps infinity.
        """
        last = SETTLED_STEPS if math.isinf(steps) else SETTLED * steps
        return self.learns and step < last

    def put(self, orders: Mapping[str, Tensor]) -> None:
        """Take up a permutation that was saved.

        Args:
            orders: Its orders by group.
        """
        self.permutation = Permutation(self.spec, orders)

    def project(
        self, reference: State, moved: State, seed: int
    ) -> tuple[dict[str, Tensor], float]:
        """The orders nearest to what the reference, the start and the pulls want, and the objective.

        Args:
            reference: The reference: every tensor.
            moved: The source under the continuous elements, before the permutation: every tensor, without gradients.
            seed: Of the order in which groups are visited.
        """
        target = _target(reference, moved, self.share)
        for name, pull in self._pulled():
            target[name] = target[name] + pull.detach()
        matcher = WeightMatcher(self.spec, weighted(self.spec, moved))
        target = dict(weighted(self.spec, target))
        result = matcher.match(
            target, self.permutation, seed=seed, order="random"
        )
        return dict(result.permutation.orders), result.objective

    def permuted(self, moved: State) -> dict[str, Tensor]:
        """The moved source in its current order; gradients go to the elements and, straight through, to the pulls.

        Args:
            moved: The source under the continuous elements, differentiable.
        """
        found = {}
        for name, tensor in moved.items():
            axis_map = self.spec.maps.get(self.spec.aliases.get(name, name))
            found[name] = (
                tensor
                if axis_map is None
                else self.permutation.apply_map(tensor, axis_map)
            )
        for name, pull in self._pulled():
            # The value stays; the gradient goes on to the pull.
            found[name] = found[name] + (pull - pull.detach())
        return found

    def _pulled(self) -> list[tuple[str, Tensor]]:
        """The pulls by name, in the size of their tensors."""
        sized = zip(self._sizes.items(), self.pulls, strict=True)
        return [(name, size * pull) for (name, size), pull in sized]


def _target(reference: State, moved: State, share: float) -> dict[str, Tensor]:
    """``A + t·E(B)``, of floating-point tensors."""
    target = {}
    for name, tensor in reference.items():
        target[name] = tensor
        if tensor.is_floating_point():
            target[name] = tensor + share * moved[name]
    return target


def _share(spec: PermutationSpec, reference: State, started: State) -> float:
    """The smallest share of the source for which the identity is the projection."""
    identity = Permutation.identity(spec)
    if not spec.groups:
        return 0.0
    matcher = WeightMatcher(spec, weighted(spec, started))
    for share in _SHARES:
        target = _target(reference, started, share)
        found = matcher.match(
            weighted(spec, target), identity, seed=0, order="random"
        )
        if found.permutation.is_identity:
            return share
    return _SHARES[-1]
