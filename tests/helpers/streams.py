"""A small residual network whose blocks subclasses replace, and what its spec says, proved."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_rebasin import check_equivalence, infer_spec
from lightning_rebasin.symmetry import PermutationSpec, Transform

WIDTH, HIDDEN, WORDS = 8, 6, 7
IDS = torch.tensor([[0, 3, 1, 5], [6, 2, 2, 4]])
Norm = Callable[[int], nn.Module]


def randomised(net: nn.Module) -> nn.Module:
    """No gain is 1 and no shift is 0: what is folded wrongly shows."""
    generator = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        mean = 0.3 if parameter.dim() == 1 else 0.0
        nn.init.normal_(parameter, mean, 0.5, generator=generator)
    return net.double()


def proved(
    net: nn.Module, *inputs: Tensor, guesses: bool = False
) -> PermutationSpec:
    """The spec; random elements leave the function unchanged in float64.

    The gate had nothing to refuse, except where the analysis leaves a guess to it.
    """
    spec = infer_spec(net, *inputs, kinds="all")
    refused = "random elements" in " ".join(spec.limits.values())
    assert guesses or not refused
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        drawn = Transform.random(spec, generator)
        assert check_equivalence(net, drawn, *inputs) < 1e-9
    return spec


def kind_of(spec: PermutationSpec, tensor: str, dim: int) -> str:
    """The kinds with which a dimension of a tensor moves."""
    axis_map = spec.maps[tensor]
    found = []
    for component in axis_map.components:
        dims = {axis_map.site_dims[site] for site in component.sites}
        if dims == {dim}:
            found.append(spec.groups[component.group].kind)
    return "+".join(sorted(found))


class Stream(nn.Module):
    """Embedding, one block behind a norm, a last norm, a head; subclasses set the traps."""

    def __init__(self, norm: Norm = nn.LayerNorm) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, WIDTH)
        self.first, self.last = norm(WIDTH), norm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)
        self.head = nn.Linear(WIDTH, WORDS)

    def block(self, h: Tensor) -> Tensor:
        found: Tensor = self.down(F.gelu(self.up(h)))
        return found

    def read(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.last(x))
        return found

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        return self.read(x + self.block(self.first(x)))
