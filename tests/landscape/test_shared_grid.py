"""Every process measures its own points, and all of them get the whole curve."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_rebasin import measure_barrier
from lightning_rebasin.landscape.shared_grid import (
    Share,
    measure_shared_barrier,
)


def loss(module: nn.Module, batch: Tensor) -> Tensor:
    return (module(batch) - 1).square().mean()


@pytest.mark.parametrize("size", [1, 2, 3, 9])
def test_all_parts_are_the_curve_of_one_process(size: int) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    a = {n: torch.randn_like(t) for n, t in module.state_dict().items()}
    b = {n: torch.randn_like(t) for n, t in module.state_dict().items()}
    batches = [torch.randn(8, 3), torch.randn(5, 3)]
    sent: dict[int, Any] = {}

    def measured(rank: int, answers: Sequence[Any]) -> Any:
        def gather(own: Any) -> Sequence[Any]:
            sent[rank] = own
            return answers or [own]

        share = Share(rank, size, gather)
        return measure_shared_barrier(
            module, a, b, batches, share=share, points=7, loss=loss
        )

    for rank in range(size):
        measured(rank, ())
    # Each point is measured once, but for processes that have none of their own.
    numbers = sorted(n for rank in range(min(size, 7)) for n in sent[rank][0])
    assert numbers == list(range(7))
    answers = [sent[rank] for rank in range(size)]
    wanted = measure_barrier(module, a, b, batches, points=7, loss=loss)
    for rank in range(size):
        curve = measured(rank, answers)
        assert curve.values["loss"] == pytest.approx(wanted.values["loss"])
        assert (curve.lambdas, curve.samples) == (wanted.lambdas, 13)
