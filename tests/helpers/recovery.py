"""A planted element of every kind, and matching that has to find it without data."""

from __future__ import annotations

import torch
from torch import nn

from lightning_rebasin import match_weights
from lightning_rebasin.symmetry import PermutationSpec, Transform


def assert_planted_is_recovered(net: nn.Module, spec: PermutationSpec) -> None:
    """A random element moves a copy of the network; weight matching brings it back to 1e-6, in canonical gauge.

    Args:
        net: In float64.
        spec: Of any kinds.
    """
    state = net.state_dict()
    planted = Transform.random(spec, torch.Generator().manual_seed(4))
    moved = planted.apply(state)
    match = match_weights(spec, state, moved)
    found = match.transform.apply(moved)
    for name, tensor in spec.canonicalise(state).items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-6)
