"""Procrustes steps against SciPy and brute force."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.linalg import orthogonal_procrustes

from lightning_rebasin.matching.steps.procrustes import procrustes
from lightning_rebasin.matching.steps.step import step_of
from lightning_rebasin.symmetry import Group
from lightning_rebasin.symmetry.actions.action import action_of

KINDS = ("orthogonal", "orthogonal_mean", "linear", "plane")


def costs(size: int = 4, problems: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(
        problems, size, size, generator=generator, dtype=torch.float64
    )


def test_the_nearest_rotation_is_scipys() -> None:
    a, b = costs(5, 2)
    found, value = procrustes((a @ b.T)[None])
    wanted, scale = orthogonal_procrustes(b.numpy().T, a.numpy().T)
    # SciPy multiplies from the right: its B·R is our (E·B)ᵀ.
    torch.testing.assert_close(found[0], torch.from_numpy(wanted.T))
    assert float(value) == pytest.approx(scale)


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_reached_and_no_random_element_does_better(
    kind: str,
) -> None:
    group = Group("g", 4, None, kind)
    cost = costs()
    elements, values = step_of(group).best(cost, "auto")
    action = action_of(group)
    for problem, element, value in zip(cost, elements, values, strict=True):
        action.check(group, element)

        def gain(e: torch.Tensor, c: torch.Tensor = problem) -> float:
            # ⟨A_i, Σ_j E_ij B_j⟩ with the columns of C as what B holds
            moved = action.apply(group, e, c.T[None].contiguous(), 1)[0]
            return float(moved.diagonal().sum())

        assert gain(element) == pytest.approx(float(value))
        for seed in range(50):
            other = action.random(group, torch.Generator().manual_seed(seed))
            if kind in ("linear", "plane"):
                continue  # they may stretch, which balanced ends forbid
            assert gain(other) <= float(value) + 1e-9


def test_planes_are_turned_to_the_best_angle() -> None:
    group = Group("g", 2, None, "plane")
    cost = costs(2, 1)
    _, value = step_of(group).best(cost, "auto")
    angles = torch.linspace(0, 2 * math.pi, 20001, dtype=torch.float64)
    real = cost[0, 0, 0] + cost[0, 1, 1]
    imaginary = cost[0, 1, 0] - cost[0, 0, 1]
    best = (angles.cos() * real + angles.sin() * imaginary).max()
    assert float(value) == pytest.approx(float(best), abs=1e-6)


def test_single_units_get_a_sign() -> None:
    found, value = procrustes(torch.tensor([[[-2.0]], [[0.0]], [[3.0]]]))
    assert found.flatten().tolist() == [-1, 1, 1]
    assert value.tolist() == [2, 0, 3]
