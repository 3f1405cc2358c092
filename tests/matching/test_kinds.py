"""A random element of every kind, applied to a copy, is found again: without data, and from activations."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from helpers.kinds import networks
from torch import Tensor, nn

from lightning_rebasin import infer_spec, match_activations, match_weights
from lightning_rebasin.symmetry import PermutationSpec, Transform

#: What at least must be found in each network.
EXPECTED = {
    "layer norm": {"orthogonal_mean", "linear", "permutation"},
    "rotary": {"orthogonal", "linear", "permutation", "plane"},
    "relu": {"scale"},
    "tanh": {"sign"},
    "low rank": {"linear"},
}


def planted(
    name: str,
) -> tuple[nn.Module, nn.Module, PermutationSpec, Tensor]:
    """A network, its transformed copy, the spec and a batch."""
    module, batch = networks(name)
    spec = infer_spec(module, batch, kinds="all")
    generator = torch.Generator().manual_seed(3)
    element = Transform.random(spec, generator)
    copied = copy.deepcopy(module)
    state = element.apply(spec.canonicalise(module.state_dict()))
    copied.load_state_dict(state)
    return module, copied, spec, batch


def assert_recovered(
    spec: PermutationSpec,
    module: nn.Module,
    copied: nn.Module,
    found: Transform,
    batch: Tensor,
) -> None:
    """The same weights in canonical gauge, and the same function."""
    wanted = spec.canonicalise(module.state_dict())
    source = spec.canonicalise(copied.state_dict())
    aligned = found.apply(source)
    for key, tensor in wanted.items():
        torch.testing.assert_close(aligned[key], tensor, rtol=0, atol=1e-6)
    outputs = torch.func.functional_call(copied, aligned, (batch,))
    torch.testing.assert_close(outputs, module(batch), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", EXPECTED)
def test_the_kinds_are_found(name: str) -> None:
    module, batch = networks(name)
    spec = infer_spec(module, batch, kinds="all")
    kinds = {group.kind for group in spec.groups.values()}
    assert kinds >= EXPECTED[name]


@pytest.mark.parametrize("name", EXPECTED)
def test_weights_recover_a_random_element(name: str) -> None:
    module, copied, spec, batch = planted(name)
    a, b = module.state_dict(), copied.state_dict()
    moved = [not torch.allclose(a[key], b[key], atol=1e-3) for key in a]
    assert any(moved)
    a, b = spec.canonicalise(a), spec.canonicalise(b)
    found = match_weights(spec, a, b).transform
    assert_recovered(spec, module, copied, found, batch)


@pytest.mark.parametrize("name", EXPECTED)
def test_activations_recover_a_random_element(name: str) -> None:
    module, copied, spec, batch = planted(name)
    for network in (module, copied):
        network.load_state_dict(spec.canonicalise(network.state_dict()))
    found = match_activations(spec, module, copied, [batch]).transform
    assert_recovered(spec, module, copied, found, batch)


def test_the_transform_survives_a_file(tmp_path: Path) -> None:
    module, copied, spec, _batch = planted("layer norm")
    a = spec.canonicalise(module.state_dict())
    b = spec.canonicalise(copied.state_dict())
    found = match_weights(spec, a, b).transform
    found.save(tmp_path / "found.perm")
    loaded = Transform.load(tmp_path / "found.perm")
    for key, tensor in found.apply(b).items():
        assert torch.equal(loaded.apply(b)[key], tensor)
