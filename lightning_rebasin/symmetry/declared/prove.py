"""The gate in front of declarations: every declared group is proved on the examples before it enters a spec.

A group is tried alone, with the element that moves everything and with random ones, on a private float64 copy.  If the
function changes, or the example cannot show whether it does, the group is pinned and the reason noted; what was
inferred without the declaration stays.

An example of zeros would hide every mistake in the weights that read it, so an input whose entries are all equal is
tried with noise as well.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from lightning_rebasin.errors import (
    DeclarationWarning,
    RebasinError,
    SpecError,
)
from lightning_rebasin.symmetry.actions.action import action_of
from lightning_rebasin.symmetry.actions.transform import Transform
from lightning_rebasin.symmetry.declared.collect import (
    Declaration,
    Declared,
    declarations,
    in_network,
)
from lightning_rebasin.symmetry.declared.merge import with_declared
from lightning_rebasin.symmetry.declared.watch import (
    place_of,
    without_unsteady_addresses,
)
from lightning_rebasin.symmetry.proof.gate import measure_equivalence
from lightning_rebasin.symmetry.run.examples import Example
from lightning_rebasin.symmetry.spec.pin import pin_group
from lightning_rebasin.symmetry.spec.spec import PermutationSpec

#: Random elements of each group that must leave the function as it is, beside the one that moves everything.
DRAWS = 2


@dataclass(frozen=True)
class Fault:
    """A declared group that did not pass, and why."""

    group: str
    reason: str


def add_declared(
    module: nn.Module,
    spec: PermutationSpec,
    examples: Sequence[Example],
    kinds: Collection[str],
) -> PermutationSpec:
    """The inferred spec with the symmetries that submodules declare, proved.

    Args:
        module: The network.
        spec: What was inferred.
        examples: The inputs on which the declarations are proved.
        kinds: Which kinds are asked for.

    Returns:
        The spec itself if nothing is declared.

    Raises:
        SpecError: A declaration is malformed.
    """
    for declaration in declarations(module, kinds):
        spec = _add(module, spec, declaration, examples)
    return spec


def _add(
    module: nn.Module,
    spec: PermutationSpec,
    declaration: Declaration,
    examples: Sequence[Example],
) -> PermutationSpec:
    """Each round takes one group back, until those that are left pass."""
    network, partial = spec, declaration.spec is not declaration.whole
    notes: list[str] = []
    while declaration.spec.groups:
        declared = in_network(declaration, spec, spec.groups)
        candidate = with_declared(spec, declared)
        _check_importance(candidate, declared)
        fault = first_fault(
            module, candidate, tuple(declared.groups), examples
        )
        if fault is None:
            noted = replace(candidate, notes=(*candidate.notes, *notes))
            if partial:
                noted = _as_if_all_were_asked_for(
                    module, network, noted, declaration, examples
                )
            return without_unsteady_addresses(
                module, noted, tuple(declared.groups), examples[0]
            )
        local = declared.local[fault.group]
        who = declaration.path or type(module).__name__
        notes.append(f"{who!r} declares the group {local!r}: {fault.reason}")
        warnings.warn(notes[-1], DeclarationWarning, stacklevel=5)
        rest = pin_group(declaration.spec, local, fault.reason)
        declaration = replace(declaration, spec=rest)
    return replace(spec, notes=(*spec.notes, *notes))


def _as_if_all_were_asked_for(
    module: nn.Module,
    network: PermutationSpec,
    spec: PermutationSpec,
    declaration: Declaration,
    examples: Sequence[Example],
) -> PermutationSpec:
    """The spec without addresses at which declared symmetries that nobody asked for change what is seen.

    Two ensembles differ by flips also where only the order of their trees is wanted, so their leaves are no samples.
    """
    everything = replace(declaration, spec=declaration.whole)
    declared = in_network(everything, network, network.groups)
    candidate = with_declared(network, declared)
    names = tuple(declared.groups)
    if first_fault(module, candidate, names, examples) is not None:
        return spec
    steady = without_unsteady_addresses(module, candidate, names, examples[0])
    kept = {}
    for group, addresses in spec.activations.items():
        places = {place_of(a) for a in steady.activations.get(group, ())}
        kept[group] = tuple(a for a in addresses if place_of(a) in places)
    return replace(spec, activations={g: a for g, a in kept.items() if a})


def first_fault(
    module: nn.Module,
    spec: PermutationSpec,
    groups: Sequence[str],
    examples: Sequence[Example],
) -> Fault | None:
    """The first group that changes the function, or of which nothing can be said.

    Args:
        module: The network with its weights.
        spec: A spec of it.
        groups: Ids of the groups to prove.
        examples: Inputs.
    """
    examples = [lively for example in examples for lively in _lively(example)]
    for group in groups:
        for transform in _elements(spec, group):
            reason = _objection(module, transform, examples)
            if reason:
                return Fault(group, reason)
    return None


def _elements(spec: PermutationSpec, group: str) -> Iterator[Transform]:
    """Elements of one group that move much, each alone."""
    own = spec.groups[group]
    action = action_of(own)
    yield Transform.of(spec, {group: action.far(own)})
    generator = torch.Generator().manual_seed(0)
    for _ in range(DRAWS):
        yield Transform.of(spec, {group: action.random(own, generator)})


def _objection(
    module: nn.Module, transform: Transform, examples: Sequence[Example]
) -> str:
    """Why an element is not believed; empty if it is."""
    try:
        found = measure_equivalence(module, transform, examples=examples)
    except RebasinError as error:
        return f"it could not be proved: {error}"
    if not found.equal:
        return f"one of its elements changes the function (relative output error {found.error:.1e}), so it is pinned"
    movable = any(
        not action_of(g).trivial(g) for g in transform.spec.groups.values()
    )
    if movable and not found.sees:
        return (
            "the example input does not show whether it holds, so it is pinned"
        )
    return ""


def _lively(example: Example) -> list[Example]:
    """The example, and if some input is the same everywhere, the example with noise in its place."""
    generator = torch.Generator().manual_seed(0)
    changed = False

    def disturb(value: object) -> object:
        nonlocal changed
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        if not value.numel() or bool((value != value.flatten()[0]).any()):
            return value
        changed = True
        noise = torch.randn(
            value.shape, generator=generator, dtype=torch.float64
        )
        return value + noise.to(value.device, value.dtype)

    args, kwargs = tree_map(disturb, (example.args, dict(example.kwargs)))
    if not changed:
        return [example]
    return [example, replace(example, args=args, kwargs=kwargs)]


def _check_importance(spec: PermutationSpec, declared: Declared) -> None:
    """Units that change places must count alike, or the objective would depend on who is where."""
    far = {g.id: action_of(g).far(g) for g in declared.groups.values()}
    transform = Transform.of(spec, far)
    for name in declared.maps:
        importance = spec.tensors[name].importance
        if importance is None:
            continue
        shape = spec.tensors[name].shape
        view = [1] * len(shape)
        view[importance.dim] = -1
        weights = torch.tensor(importance.weights).reshape(view).expand(shape)
        # Signs do not matter, only who comes to whose place.
        if not torch.equal(transform.apply_to(name, weights).abs(), weights):
            raise SpecError(
                f"tensor {name!r}: units that change places are declared to be of different importance"
            )
