"""Running a network under random symmetries, in float64, independently of the package's own gate."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lightning_rebasin import PermutationSpec, Transform


def largest_error(
    net: nn.Module, spec: PermutationSpec, *inputs: Tensor, draws: int = 3
) -> float:
    """Largest relative change of the outputs under random elements of all groups."""
    state = net.state_dict()
    with torch.no_grad():
        expected = functional_call(net, state, inputs, tie_weights=False)
    worst = 0.0
    for seed in range(draws):
        generator = torch.Generator().manual_seed(100 + seed)
        moved = Transform.random(spec, generator).apply(state)
        with torch.no_grad():
            found = functional_call(net, moved, inputs, tie_weights=False)
        change = (found - expected).abs().max() / expected.abs().max()
        worst = max(worst, float(change))
    return worst
