"""A bypass leaves the segment at a right angle and ends where the penalised loss is lowest."""

from __future__ import annotations

import pytest
import torch
from helpers.input_spaces import Quadratic, itself
from helpers.models import LeNet
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_rebasin.inputs.bypass import (
    Penalty,
    Segments,
    bypass,
    orthogonal,
    total_variation,
)
from lightning_rebasin.inputs.descent import Schedule
from lightning_rebasin.inputs.loss import InputLoss
from lightning_rebasin.inputs.network import InputNetwork


def segments(a, b, at=0.5, owners=None):
    n = len(a)
    return Segments(
        a,
        b,
        torch.full((n,), at, dtype=a.dtype),
        torch.arange(n) if owners is None else owners,
    )


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 10**6), dim=st.integers(2, 300))
def test_what_is_left_is_orthogonal_and_the_rest_is_along(seed, dim):
    generator = torch.Generator().manual_seed(seed)
    a, b, vectors = torch.randn(3, 2, dim, generator=generator)
    directions = segments(a, b).directions
    left = orthogonal(vectors, directions)
    cosines = (left * directions).sum(1) / left.norm(dim=1)
    assert cosines.abs().max() < 1e-6
    removed = vectors - left
    along = (removed * directions).sum(1, keepdim=True) * directions
    assert torch.allclose(removed, along, atol=1e-5)
    # A projection: the second time nothing happens.
    assert torch.allclose(orthogonal(left, directions), left, atol=1e-5)


def saddle(dim, seed):
    """A quadratic with a hill along the first axis and a bowl across."""
    generator = torch.Generator().manual_seed(seed)
    across = torch.randn(dim - 1, dim - 1, generator=generator).double()
    hessian = torch.zeros(dim, dim, dtype=torch.float64)
    hessian[0, 0] = -1.0
    hessian[1:, 1:] = across @ across.T / dim + torch.eye(dim - 1)
    centre = torch.randn(dim, generator=generator).double()
    return hessian, centre


@pytest.mark.parametrize("proximity", [0.0, 0.1, 3.0])
def test_on_a_quadratic_the_minimum_across_is_that_of_a_linear_system(
    proximity,
):
    dim = 5
    hessian, centre = saddle(dim, 0)
    a = torch.zeros(1, dim, dtype=torch.float64)
    b = a.clone()
    b[0, 0] = 2.0
    loss = InputLoss(
        InputNetwork(Quadratic(hessian, centre)), None, loss=itself
    )
    found = bypass(
        loss,
        segments(a, b, at=0.25),
        Schedule(1500, 0.02, -torch.inf),
        Penalty(proximity, 0.0),
    )
    # Across: H₂ (B + z − c)₂ + (2 · proximity / d) z = 0.
    across = hessian[1:, 1:]
    system = across + 2 * proximity / dim * torch.eye(dim - 1)
    expected = torch.linalg.solve(system, across @ centre[1:])
    assert found.points[0, 0] == pytest.approx(0.5, abs=1e-12)
    assert torch.allclose(found.points[0, 1:], expected, atol=1e-3)
    direct = Quadratic(hessian, centre)(found.points).detach()
    assert float(found.losses[0]) == pytest.approx(float(direct[0]))


def test_gradients_and_steps_are_orthogonal_to_the_segment(monkeypatch):
    torch.manual_seed(0)
    network, seen = InputNetwork(LeNet()), []
    a, b = torch.randn(2, 3, 1, 28, 28)
    own = segments(a, b)
    adam = "lightning_rebasin.inputs.descent.ManyAdam.step"
    from lightning_rebasin.inputs.descent import ManyAdam

    step = ManyAdam.step

    def watched(self, gradients):
        seen.append(gradients)
        return step(self, gradients)

    monkeypatch.setattr(adam, watched)
    found = bypass(
        InputLoss(network, torch.tensor([1, 2, 3])),
        own,
        Schedule(5, 0.05, -torch.inf),
        Penalty(0.1, 1e-4),
    )
    assert len(seen) == 5
    for vectors in (*seen, found.points - own.points):
        flat = vectors.flatten(1)
        along = (flat * own.directions.flatten(1)).sum(1)
        assert (along / flat.norm(dim=1)).abs().max() < 1e-6


def test_a_symmetric_hill_is_left_in_a_seeded_direction():
    class Hill(torch.nn.Module):
        def forward(self, x):
            return (-x.square().sum(1)).exp()

    a, b = torch.zeros(2, 1, 3, dtype=torch.float64)
    a[0, 0], b[0, 0] = -2.0, 2.0
    loss = InputLoss(InputNetwork(Hill()), None, loss=itself)

    def moved(seed):
        return bypass(
            loss,
            segments(a, b),
            Schedule(300, 0.05, 0.01),
            Penalty(0.0, 0.0),
            seed=seed,
        )

    first, again, other = moved(0), moved(0), moved(1)
    assert float(first.losses[0]) <= 0.01
    assert torch.equal(first.points, again.points)
    assert not torch.allclose(first.points, other.points, atol=0.1)


def test_total_variation_is_that_of_a_loop():
    images = torch.randn(2, 3, 4, 5)
    expected = torch.zeros(2)
    for n in range(2):
        for c in range(3):
            for i in range(4):
                for j in range(5):
                    here = images[n, c, i, j]
                    if i:
                        expected[n] += (here - images[n, c, i - 1, j]).abs()
                    if j:
                        expected[n] += (here - images[n, c, i, j - 1]).abs()
    assert torch.allclose(total_variation(images), expected, rtol=1e-5)
    assert total_variation(torch.ones(2, 7)).tolist() == [0, 0]


def test_the_penalty_is_a_mean_square_and_a_variation():
    moved = torch.randn(2, 1, 3, 3, dtype=torch.float64)
    value, gradient = Penalty(0.3, 0.7).value_and_gradient(moved)
    expected = 0.3 * moved.square().mean((1, 2, 3)) + 0.7 * total_variation(
        moved
    )
    assert torch.allclose(value, expected)
    step = 1e-6 * torch.randn_like(moved)
    ahead, _ = Penalty(0.3, 0.7).value_and_gradient(moved + step)
    slope = (gradient * step).flatten(1).sum(1)
    assert torch.allclose(ahead - value, slope, atol=1e-11)


def test_bounds_hold_at_every_step():
    class Away(torch.nn.Module):
        def forward(self, x):
            return -x.sum(1)

    a, b = torch.zeros(2, 1, 2)
    b[0, 0] = 1.0
    low, high = torch.tensor(-1.0), torch.tensor(0.6)
    found = bypass(
        InputLoss(InputNetwork(Away()), None, loss=itself),
        segments(a, b),
        Schedule(200, 0.05, -torch.inf),
        Penalty(0.0, 0.0),
        bounds=(low, high),
    )
    assert found.points.tolist() == [[0.5, pytest.approx(0.6)]]
