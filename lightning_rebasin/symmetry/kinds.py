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
from lightning_rebasin.symmetry.continuous.planes import (
    KIND,
    find_planes,
    with_planes,
)
from lightning_rebasin.symmetry.permutations.named_groups import NamedGroups
from lightning_rebasin.symmetry.permutations.rules.base import Context
from lightning_rebasin.symmetry.proof.kinds import KindsGate, prove
from lightning_rebasin.symmetry.run.examples import Example
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
    found = propose(spec, first.named, first.passes, kinds)
    _drop_disordered(spec, found)
    planes = find_planes(spec, first.passes) if "plane" in kinds else {}
    proposals = {g: [c.kind for c in cs] for g, cs in found.candidates.items()}
    proposals |= {name: [KIND] * len(pair) for name, pair in planes.items()}
    if not proposals:
        limited = replace(spec, limits=found.limits)
        return WithKinds(limited, found.blocked)

    def build(choices: Mapping[str, int]) -> PermutationSpec:
        chosen = [
            found.candidates[name][number]
            for name, number in choices.items()
            if name in found.candidates
        ]
        enlarged = enlarge(spec, chosen, found.limits)
        for name, number in choices.items():
            if name in planes:
                enlarged = with_planes(enlarged, planes[name][number])
        return enlarged

    def own_group(name: str, number: int) -> str:
        if name in planes:
            return name
        candidate = found.candidates[name][number]
        return inner_name(candidate) if candidate.inside else name

    gate = KindsGate(module, examples, spec)
    try:
        choices, refused = prove(gate, build, proposals, own_group)
    finally:
        gate.close()
    proved = build(choices)
    why = {g: reason for g, reason in refused.items() if g in proved.groups}
    limited = replace(proved, limits={**proved.limits, **why})
    return WithKinds(limited, found.blocked)


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
