"""More than permutations: propose larger kinds for the groups of a spec, prove them, and hand out what holds."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import final

from torch import nn

from lightning_rebasin.symmetry.continuous.candidates import (
    Candidate,
    Proposals,
    propose,
)
from lightning_rebasin.symmetry.continuous.enlarge import (
    check_order,
    enlarge,
    inner_name,
)
from lightning_rebasin.symmetry.continuous.operations import Limit
from lightning_rebasin.symmetry.continuous.passing import find_passed_biases
from lightning_rebasin.symmetry.continuous.plane_maps import (
    check_planes,
    with_planes,
    with_refusals,
)
from lightning_rebasin.symmetry.continuous.planes import (
    KIND,
    FoundPlanes,
    find_planes,
)
from lightning_rebasin.symmetry.permutations.named_groups import NamedGroups
from lightning_rebasin.symmetry.permutations.rules.base import Context
from lightning_rebasin.symmetry.proof.kinds import KindsGate, prove
from lightning_rebasin.symmetry.run.examples import Example
from lightning_rebasin.symmetry.spec.passed_biases import PassedBias
from lightning_rebasin.symmetry.spec.spec import PermutationSpec


@final
@dataclass(frozen=True)
class FirstAnalysis:
    """What the analysis of permutations leaves behind.

    Args:
        named: The groups.
        passes: Its last pass over each tape, with the labels of all values.
    """

    named: NamedGroups
    passes: Sequence[Context]


@final
@dataclass(frozen=True)
class WithKinds:
    """What the second analysis found.

    Args:
        spec: The spec with larger kinds.
        blocked: For some groups the weight whose two uses alone stand in the way of a larger kind.
    """

    spec: PermutationSpec
    blocked: Mapping[str, str]


def with_kinds(
    module: nn.Module,
    examples: Sequence[Example],
    spec: PermutationSpec,
    first: FirstAnalysis,
    kinds: Collection[str],
) -> WithKinds:
    """The spec with the largest kinds that the tapes propose and the gate proves.

    Args:
        module: The network, with weights that the proof can run on.
        examples: The inputs that were traced.
        spec: Its permutation spec.
        first: What the first analysis knows of the spec.
        kinds: Which kinds are wanted.
    """
    proposed = _Proposed(spec, first, kinds)
    biases = find_passed_biases(spec, first.passes)
    if not proposed.kinds and not biases:
        return WithKinds(proposed.limited(spec, {}), proposed.blocked)
    gate = KindsGate(module, examples, spec)
    try:
        choices, refused = prove(
            gate, proposed.build, proposed.kinds, proposed.own_group
        )
        proved = _without_biases(gate, proposed.build(choices), biases)
    finally:
        gate.close()
    return WithKinds(proposed.limited(proved, refused), proposed.blocked)


def _without_biases(
    gate: KindsGate, spec: PermutationSpec, biases: tuple[PassedBias, ...]
) -> PermutationSpec:
    """The spec whose canonical gauge also knows the biases that the network does not need."""
    together = replace(spec, biases=biases)
    if not biases or gate.keeps(together):
        return together
    kept: list[PassedBias] = []
    for bias in biases:
        if gate.keeps(replace(spec, biases=(*kept, bias))):
            kept.append(bias)
    return replace(spec, biases=tuple(kept))


@final
class _Proposed:
    """Everything that is proposed for one network, and the specs that come of choices.

    Args:
        spec: Its permutation spec.
        first: What the first analysis knows of the spec.
        kinds: Which kinds are wanted.
    """

    def __init__(
        self,
        spec: PermutationSpec,
        first: FirstAnalysis,
        kinds: Collection[str],
    ) -> None:
        self._spec = spec
        self._found = propose(spec, first.named, first.passes, kinds)
        _drop_disordered(spec, self._found)
        self._turned = FoundPlanes()
        if KIND in kinds:
            turned = find_planes(spec, first.passes)
            self._turned = check_planes(spec, turned)

    @property
    def kinds(self) -> dict[str, list[str]]:
        """For each group, old or new, the kinds that are proposed."""
        found: dict[str, list[str]] = {}
        for group, candidates in self._found.candidates.items():
            found[group] = [candidate.kind for candidate in candidates]
        for name in self._turned.planes:
            found[name] = [KIND]
        return found

    @property
    def blocked(self) -> dict[str, str]:
        """For some groups the weight whose two uses alone stand in the way of a larger kind."""
        return self._found.blocked

    def build(self, choices: Mapping[str, int]) -> PermutationSpec:
        """The spec in which some groups have the proposal of this number."""
        chosen = []
        for name, number in choices.items():
            if name in self._found.candidates:
                candidate = self._found.candidates[name][number]
                chosen.append(candidate)
        enlarged = enlarge(self._spec, chosen, self._found.limits)
        for name in choices:
            if name in self._turned.planes:
                planes = self._turned.planes[name]
                enlarged = with_planes(enlarged, planes)
        return enlarged

    def own_group(self, name: str, number: int) -> str:
        """The id of the group that a proposal adds or changes."""
        if name in self._turned.planes:
            return name
        candidate = self._found.candidates[name][number]
        return inner_name(candidate) if candidate.inside else name

    def limited(
        self, spec: PermutationSpec, refused: Mapping[str, str]
    ) -> PermutationSpec:
        """A spec with all that is known of why its kinds are not larger.

        Args:
            spec: The spec.
            refused: Why the gate refused something, by the name of the proposal.
        """
        limits = {**self._found.limits, **spec.limits}
        for name, reason in refused.items():
            if name in self._turned.planes:
                self._turned.refuse(self._turned.planes[name], reason)
            else:
                limits[name] = reason
        known = {g: why for g, why in limits.items() if g in spec.groups}
        limited = replace(spec, limits=known)
        return with_refusals(limited, self._turned.refused)


def _drop_disordered(spec: PermutationSpec, found: Proposals) -> None:
    """Take back proposals that need a fold between tensors with different orders."""
    for group, candidates in list(found.candidates.items()):
        kept: list[Candidate] = []
        for candidate in candidates:
            try:
                for fold in candidate.folds:
                    check_order(spec, group, fold)
                kept.append(candidate)
            except Limit as limit:
                found.limits[group] = str(limit)
        found.candidates[group] = kept
        if not kept:
            del found.candidates[group]
