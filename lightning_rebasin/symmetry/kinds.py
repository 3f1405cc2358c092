"""More than permutations: propose larger kinds for the groups of a spec, prove them, and hand out what holds."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

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
from lightning_rebasin.symmetry.permutations.named_groups import NamedGroups
from lightning_rebasin.symmetry.permutations.rules.base import Context
from lightning_rebasin.symmetry.proof.kinds import KindsGate, prove
from lightning_rebasin.symmetry.run.examples import Example
from lightning_rebasin.symmetry.spec.spec import PermutationSpec


def with_kinds(
    module: nn.Module,
    examples: Sequence[Example],
    spec: PermutationSpec,
    named: NamedGroups,
    passes: Sequence[Context],
    kinds: Collection[str],
) -> PermutationSpec:
    """The spec with the largest kinds that the tapes propose and the gate proves.

    Args:
        module: The network, with weights that the proof can run on.
        examples: The inputs that were traced.
        spec: Its permutation spec.
        named: The groups of the spec, as the first analysis knows them.
        passes: The first analysis' last pass over each tape.
        kinds: Which kinds are wanted.
    """
    found = propose(spec, named, passes, kinds)
    _drop_disordered(spec, found)
    if not found.candidates:
        return replace(spec, limits=found.limits)

    def build(choices: Mapping[str, int]) -> PermutationSpec:
        chosen = [found.candidates[g][number] for g, number in choices.items()]
        return enlarge(spec, chosen, {})

    def own_group(group: str, number: int) -> str:
        candidate = found.candidates[group][number]
        return inner_name(candidate) if candidate.inside else group

    gate = KindsGate(module, examples, spec)
    try:
        kinds_of = {g: [c.kind for c in cs] for g, cs in found.candidates.items()}
        choices, refused = prove(gate, build, kinds_of, own_group)
    finally:
        gate.close()
    limits = {**found.limits, **refused}
    chosen = [found.candidates[g][number] for g, number in choices.items()]
    return enlarge(spec, chosen, limits)


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
