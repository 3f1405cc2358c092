"""Where units can still be observed, once a module has declared what lies inside them.

The trace says at which operands the units of a group can be seen.  It does not know the declared symmetries: the leaves
of a tree look like samples to it, though flips move them.  So every address is tried: with all declared groups changed
as much as they can be, the units must be seen in their new places, unchanged.  Other addresses are dropped.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import torch
from torch import Tensor, nn

from lightning_rebasin.symmetry.actions.action import action_of
from lightning_rebasin.symmetry.actions.transform import Transform
from lightning_rebasin.symmetry.observe import record_activations
from lightning_rebasin.symmetry.proof.sandbox import Sandbox
from lightning_rebasin.symmetry.run.examples import Example
from lightning_rebasin.symmetry.spec.spec import PermutationSpec
from lightning_rebasin.symmetry.spec.values import ActivationAddress

#: Largest relative difference of what is the same, in float64.
_TOLERANCE = 1e-8


def without_unsteady_addresses(
    module: nn.Module,
    spec: PermutationSpec,
    declared: Collection[str],
    example: Example,
) -> PermutationSpec:
    """The spec without the addresses at which declared symmetries change what is seen.

    Args:
        module: The network.
        spec: Its spec, with declared groups.
        declared: Their ids.
        example: An input.
    """
    if not spec.activations:
        return spec
    elements = {}
    for group in map(spec.groups.__getitem__, declared):
        elements[group.id] = action_of(group).far(group)
    transform = Transform.of(spec, elements)
    sandbox = Sandbox(module)
    try:
        before = _seen(sandbox, spec, example)
        with sandbox.transformed(transform):
            after = _seen(sandbox, spec, example)
    finally:
        sandbox.close()
    kept: dict[str, tuple[ActivationAddress, ...]] = {}
    for group_id, addresses in spec.activations.items():
        order = transform.flat(group_id)
        steady = [
            address
            for address in addresses
            if _alike(before[address][order], after[address])
        ]
        if steady:
            kept[group_id] = tuple(steady)
    for group_id in declared:
        # Listed without any address: nobody should look for it where its parent is seen.
        kept.setdefault(group_id, ())
    return replace(spec, activations=kept)


def place_of(address: ActivationAddress) -> tuple[str, int, int]:
    """The operation, which of its runs, and which operand."""
    return address.op, address.ordinal, address.argument


def _seen(
    sandbox: Sandbox, spec: PermutationSpec, example: Example
) -> dict[ActivationAddress, Tensor]:
    """What is seen at every address of a spec in one run."""
    found: dict[ActivationAddress, Tensor] = {}

    def keep(address: ActivationAddress, tensor: Tensor) -> None:
        found[address] = address.units(tensor).double().cpu()

    with record_activations(spec, keep):
        sandbox.run(example)
    return found


def _alike(a: Tensor, b: Tensor) -> bool:
    scale = float(a.abs().max()) if a.numel() else 0.0
    return bool(torch.allclose(a, b, rtol=0, atol=_TOLERANCE * scale))
