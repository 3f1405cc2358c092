"""Many inputs in one loop of Adam are what each is alone, and torch's Adam says the same."""

from __future__ import annotations

import pytest
import torch

from lightning_rebasin.inputs.descent import (
    ManyAdam,
    Schedule,
    Slope,
    descend,
)


def bowls(points, numbers):
    """Bowls of different depth: number i is ``(i + 1) ‖x‖²``."""
    scale = (numbers + 1).to(points)
    losses = scale * points.square().sum(1)
    return Slope(losses, losses, 2 * scale[:, None] * points)


def test_the_steps_are_those_of_torch():
    torch.manual_seed(0)
    start = torch.randn(3, 4, dtype=torch.float64)
    theirs = start.clone().requires_grad_()
    optimiser = torch.optim.Adam([theirs], lr=0.03)
    ours, adam = start.clone(), ManyAdam(start, 0.03)
    for _ in range(20):
        optimiser.zero_grad()
        (theirs**4).sum().backward()
        optimiser.step()
        ours = ours + adam.step(4 * ours**3)
    assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-14)


def test_inputs_leave_one_by_one_and_do_not_disturb_the_others():
    torch.manual_seed(0)
    points = torch.randn(5, 3, dtype=torch.float64)
    schedule = Schedule(500, 0.02, 1e-3)
    together = descend(points, bowls, schedule)
    for i in range(5):
        alone = descend(
            points[i : i + 1],
            lambda x, numbers, i=i: bowls(x, numbers + i),
            schedule,
        )
        assert torch.equal(alone.points[0], together.points[i])
        assert alone.losses[0] == together.losses[i] <= 1e-3
        assert alone.steps[0] == together.steps[i]
    assert len(set(together.steps.tolist())) > 1


def test_the_best_place_counts_and_not_the_last():
    found = descend(
        torch.tensor([[0.01, 0.0]]), bowls, Schedule(3, 1.0, -torch.inf)
    )
    assert found.points.tolist() == [[pytest.approx(0.01), 0.0]]
    assert found.steps.tolist() == [3]


def test_who_has_arrived_at_the_start_stays():
    points = torch.zeros(1, 2)
    found = descend(points, bowls, Schedule(9, 1.0, 0.5))
    assert found.steps.tolist() == [0]
    assert torch.equal(found.points, points)


def test_what_arrives_counts_though_its_penalty_is_high():
    def slope(points, numbers):
        losses = points.square().sum(1)
        # The further from the start, the dearer: the objective is lowest there.
        return Slope(losses, 10 - losses, 2 * points)

    found = descend(torch.ones(1, 1), slope, Schedule(200, 0.05, 0.1))
    assert found.losses[0] <= 0.1
    assert found.points[0, 0] ** 2 == pytest.approx(float(found.losses[0]))
