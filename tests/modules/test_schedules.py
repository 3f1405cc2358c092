"""The step size falls to 0 and stays there."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_rebasin.modules.schedules import half_cosine


def optimizer() -> torch.optim.Optimizer:
    parameter = torch.nn.Parameter(torch.zeros(1))
    return torch.optim.SGD([parameter], lr=0.2)


def test_beyond_the_end_it_stays_zero() -> None:
    moving = optimizer()
    scheduler = half_cosine(moving, 4)
    assert scheduler is not None
    seen = []
    for _ in range(7):
        seen.append(moving.param_groups[0]["lr"])
        moving.step()
        scheduler.step()
    assert seen[0] == 0.2
    assert seen[2] == pytest.approx(0.1)
    assert seen[1] > seen[2] > seen[3] > 0
    assert seen[4:] == pytest.approx([0, 0, 0])


def test_without_an_end_there_is_nothing_to_fall_towards() -> None:
    assert half_cosine(optimizer(), math.inf) is None
