"""What the tests of single stages of a refit share: data, the layers that are found, and a small network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_rebasin.merging.refit.fitted import FittedLayer
from lightning_rebasin.merging.refit.plan import make_plan
from lightning_rebasin.symmetry.run.examples import Example
from lightning_rebasin.symmetry.trace.record import record


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Normal random numbers in float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def layers_of(module: nn.Module, x: Tensor) -> tuple[FittedLayer, ...]:
    """The layers that a refit finds, in the order in which they run."""
    few = x[:4]
    tape = record(module, Example((few,)))
    return make_plan(module, tape, len(few)).fitted


class Stack(nn.Module):
    """A linear layer, a gain or norm behind it, and a nonlinearity."""

    def __init__(self, behind: nn.Module, *, bias: bool = True) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3, bias=bias)
        self.behind = behind

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.behind(self.linear(x)))
