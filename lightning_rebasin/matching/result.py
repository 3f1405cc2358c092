"""What a matching found, how it got there, and how sure it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lightning_rebasin.errors import PermutationError
from lightning_rebasin.symmetry.actions.permutation import Permutation
from lightning_rebasin.symmetry.actions.transform import Transform
from lightning_rebasin.symmetry.spec.spec import PermutationSpec


@dataclass(frozen=True)
class Descent:
    """One run of coordinate descent.

    Args:
        start: What it started from and in which order it went ("identity, forward").
        objectives: Objective before the first sweep and after each sweep.
        converged: Whether a sweep without gain was reached.
        seconds: Wall-clock time.
    """

    start: str
    objectives: tuple[float, ...]
    converged: bool
    seconds: float

    @property
    def objective(self) -> float:
        """The objective it ended with."""
        return self.objectives[-1]

    @property
    def sweeps(self) -> int:
        """Number of sweeps, the last one without gain included."""
        return len(self.objectives) - 1


@dataclass(frozen=True, eq=False, repr=False)
class MatchState:
    """Where a descent stands after a sweep: passed back as ``init``, the descent goes on as if it had not been stopped.

    Args:
        spec: The spec.
        flats: The current flat order of each group.
        duals: Prices and columns of each group's last assignment.
        generator: State of the generator that draws the order of the visits.
        sweeps: Sweeps done so far.
    """

    spec: PermutationSpec
    flats: Mapping[str, Tensor]
    duals: Mapping[str, tuple[NDArray[np.float64], NDArray[np.int64]]]
    generator: Tensor
    sweeps: int

    @cached_property
    def permutation(self) -> Permutation:
        """The current permutation."""
        return Permutation.from_flat(self.spec, self.flats)

    def __repr__(self) -> str:
        return f"MatchState(after {self.sweeps} sweeps, {self.permutation!r})"


@dataclass(frozen=True, eq=False, repr=False)
class MatchResult:
    """The permutation that brings the source nearest to the reference, and how it was found.

    Args:
        transform: What brings the source near: ``transform.apply(source)`` is near the reference.
        objective: ``Σ⟨A, π(B)⟩`` over the parameters, in float64.
        identity_objective: The same for the identity: doing nothing.
        descents: Every run of coordinate descent, in the order in which they ran.
        similarity: Cosine between the weights of a group's units and of their matches, by group.
        identity_similarity: The same for the identity.
        norms: Euclidean norms of the parameters of reference and source.
        same_basin: Whether the two models were aligned already, so that the identity (or nearly) is the right answer.
        seconds: Wall-clock time of the whole call.
        method: What was maximised ("weights", "activations, inner product").
        state: Where the last descent stopped; pass it as ``init`` to go on.
    """

    transform: Transform
    objective: float
    identity_objective: float
    descents: tuple[Descent, ...] = ()
    similarity: Mapping[str, float] = field(default_factory=dict)
    identity_similarity: Mapping[str, float] = field(default_factory=dict)
    norms: tuple[float, float] = (0.0, 0.0)
    same_basin: bool = False
    seconds: float = 0.0
    method: str = "weights"
    state: MatchState | None = None

    @property
    def permutation(self) -> Permutation:
        """π, where the spec permits nothing but permutations.

        Raises:
            PermutationError: The spec has groups of other kinds: use ``transform``.
        """
        if not isinstance(self.transform, Permutation):
            raise PermutationError(
                "this match is not a permutation, its spec has other kinds of groups: use match.transform"
            )
        return self.transform

    @property
    def gain(self) -> float:
        """Objective above doing nothing; never negative."""
        return self.objective - self.identity_objective

    @property
    def moved(self) -> Mapping[str, float]:
        """Fraction of the units of each group that change place."""
        return self.transform.moved

    @property
    def moved_fraction(self) -> float:
        """Fraction of all units that change place."""
        groups = self.transform.spec.groups.values()
        total = sum(g.members for g in groups)
        moved = self.moved
        return sum(moved[g.id] * g.members for g in groups) / max(total, 1)

    @property
    def converged(self) -> bool:
        """Whether the best descent ended in a sweep without gain."""
        return (
            all(
                d.converged
                for d in self.descents
                if d.objective >= self.objective
            )
            if self.descents
            else True
        )

    @property
    def spread(self) -> float:
        """Best minus worst final objective over the descents: small means sure."""
        ends = [d.objective for d in self.descents]
        return max(ends) - min(ends) if ends else 0.0

    @property
    def cosine(self) -> float:
        """Cosine between the reference and the permuted source, over all parameters."""
        a, b = self.norms
        return self.objective / (a * b) if a and b else 0.0

    def __repr__(self) -> str:
        return (
            f"MatchResult(objective {self.objective:.6g}, {self.gain:+.4g} over the identity, "
            f"{self.moved_fraction:.1%} of units moved, {len(self.descents)} descents, {self.seconds:.2f} s"
            f"{', same basin' if self.same_basin else ''})"
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything but the permutation itself, as plain JSON values."""
        moved = self.moved
        return {
            "method": self.method,
            "objective": self.objective,
            "identity_objective": self.identity_objective,
            "gain": self.gain,
            "cosine": self.cosine,
            "spread": self.spread,
            "converged": self.converged,
            "same_basin": self.same_basin,
            "moved_fraction": self.moved_fraction,
            "seconds": self.seconds,
            "groups": {
                name: {
                    "size": group.members,
                    "moved": moved[name],
                    "similarity": self.similarity.get(name),
                    "identity_similarity": self.identity_similarity.get(name),
                }
                for name, group in self.transform.spec.groups.items()
            },
            "descents": [
                {
                    "start": d.start,
                    "objectives": list(d.objectives),
                    "converged": d.converged,
                    "seconds": d.seconds,
                }
                for d in self.descents
            ],
        }

    def report(self) -> str:
        """The result as a short text for a person."""
        lines = [
            f"matched by {self.method} in {self.seconds:.2f} s",
            f"objective {self.objective:.6g}, identity {self.identity_objective:.6g} (gain {self.gain:+.4g})",
            f"cosine to the reference {self.cosine:.3f}",
        ]
        if self.same_basin:
            lines.append(
                "the two models are in one basin already: plain averaging is right, nothing needs matching"
            )
        if len(self.descents) > 1:
            best = max(self.descents, key=lambda d: d.objective)
            near = sum(
                d.objective >= best.objective - 0.01 * max(self.gain, 0.0)
                for d in self.descents
            )
            lines.append(
                f"{len(self.descents)} descents, spread {self.spread:.4g}; best from {best.start}; "
                f"{near} of them within 1 % of the best gain"
            )
        width = max([len(name) for name in self.transform.spec.groups] + [5])
        groups = self.transform.spec.groups.values()
        kinds = {group.kind for group in groups}
        # A column that says "permutation" everywhere says nothing.
        wide = max(map(len, kinds), default=0) if len(kinds) > 1 else 0
        heading = f"{'kind':<{wide}}  " if wide else ""
        lines.append(
            f"{'group':<{width}}  {heading}units  moved  similarity (before)"
        )
        moved = self.moved
        for name, group in self.transform.spec.groups.items():
            after, before = (
                self.similarity.get(name),
                self.identity_similarity.get(name),
            )
            kind = f"{group.kind:<{wide}}  " if wide else ""
            shown = (
                ""
                if after is None or before is None
                else f"  {after:.3f} ({before:.3f})"
            )
            lines.append(
                f"{name:<{width}}  {kind}{group.members:5d}  {moved[name]:5.0%}{shown}"
            )
        return "\n".join(lines)
