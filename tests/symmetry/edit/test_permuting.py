"""The permutations of a spec alone move what the whole spec moves."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers.kinds import networks

from lightning_rebasin import infer_spec
from lightning_rebasin.symmetry import Transform
from lightning_rebasin.symmetry.edit.permuting import permuting


@pytest.mark.parametrize(
    "name", ["layer norm", "rotary", "relu", "tanh", "low rank"]
)
def test_what_lies_inside_units_moves_along(name: str) -> None:
    module, batch = networks(name)
    spec = infer_spec(module, batch, kinds="all")
    alone = permuting(spec)
    assert {g.kind for g in alone.groups.values()} <= {"permutation"}
    state = spec.canonicalise(module.state_dict())
    orders = Transform.random(alone, torch.Generator().manual_seed(0))
    whole = Transform.of(spec, orders.elements).apply(state)
    for key, tensor in orders.apply(state).items():
        torch.testing.assert_close(tensor, whole[key], rtol=0, atol=1e-12)


def test_a_spec_of_permutations_stays() -> None:
    module, batch = networks("relu")
    spec = infer_spec(module, batch)
    # Engines for weights alone do not look at activations.
    assert permuting(spec) == replace(spec, activations={})
