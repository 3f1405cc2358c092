"""Orthogonal Procrustes problems against SciPy, and the turns of planes against a grid of angles."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.linalg
import torch
from helpers.elements import drawn, inside, some_units
from hypothesis import given, settings
from torch import Tensor

from lightning_rebasin.matching.steps.procrustes import (
    LINEAR,
    MEAN_FIXING,
    MIXING,
    ORTHOGONAL,
    PLANE,
    procrustes,
)
from lightning_rebasin.matching.steps.step import Step, step_of
from lightning_rebasin.symmetry.actions.action import action_of
from lightning_rebasin.symmetry.actions.arithmetic import (
    mean_free_basis,
    random_rotations,
)

sizes, seeds = st.integers(1, 6), st.integers(0, 2**31)
close = torch.testing.assert_close
STEPS = (ORTHOGONAL, LINEAR, MEAN_FIXING, PLANE)


def some_costs(problems: int, size: int, seed: int) -> Tensor:
    numbers = np.random.default_rng(seed).standard_normal(
        (problems, size, size)
    )
    return torch.from_numpy(numbers)


@given(sizes, seeds)
@settings(deadline=None, max_examples=25)
def test_the_nearest_rotation_is_that_of_scipy(size: int, seed: int) -> None:
    costs = some_costs(2, size, seed)
    found, values = procrustes(costs)
    for cost, rotation, value in zip(costs, found, values, strict=True):
        # SciPy minimises ‖A R − B‖: with A = I that is the largest ⟨R, B⟩.
        best, scale = scipy.linalg.orthogonal_procrustes(
            np.eye(size), cost.numpy()
        )
        close(rotation, torch.from_numpy(best), rtol=1e-7, atol=1e-7)
        assert value.item() == pytest.approx(scale)
        assert float((rotation * cost).sum()) == pytest.approx(scale)


@given(st.integers(2, 5), seeds)
@settings(deadline=None, max_examples=25)
def test_the_mean_stays_and_the_rest_is_procrustes(
    size: int, seed: int
) -> None:
    costs = some_costs(1, size, seed)
    found, value = MEAN_FIXING.best(costs, "auto")
    one = torch.ones(size, dtype=torch.float64)
    close(found[0] @ one, one)
    close(value, (found * costs).sum((-2, -1)))
    # A reduced problem in any other basis of the mean-free vectors has the same answer.
    turn = random_rotations(1, size - 1, torch.Generator().manual_seed(1))[0]
    basis = mean_free_basis(size) @ turn
    inner, _ = scipy.linalg.orthogonal_procrustes(
        np.eye(size - 1), (basis.T @ costs[0] @ basis).numpy()
    )
    expected = basis @ torch.from_numpy(inner) @ basis.T + 1 / size
    close(found[0], expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("seed", range(3))
def test_turns_of_planes_are_the_best_of_many_angles(seed: int) -> None:
    costs = some_costs(2, 4, seed)
    found, values = PLANE.best(costs, "auto")
    close(found.norm(dim=-1), torch.ones(2, 2).double())
    angles = torch.linspace(0, 2 * torch.pi, 2001, dtype=torch.float64)
    cos, sin = angles.cos(), angles.sin()
    for problem in range(2):
        best = 0.0
        for k in (0, 2):
            block = costs[problem, k : k + 2, k : k + 2]
            gains = cos * (block[0, 0] + block[1, 1])
            gains = gains + sin * (block[1, 0] - block[0, 1])
            best += float(gains.max())
        assert values[problem].item() == pytest.approx(best, rel=1e-5)


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.kind)
@given(seed=seeds)
@settings(deadline=None, max_examples=10)
def test_values_are_what_the_elements_gain(step: Step, seed: int) -> None:
    """The element is applied as its action does it, and no random one of length 1 gains more."""
    group = inside(step.kind, 4)
    action = action_of(group)
    a, b = some_units(group, seed), some_units(group, seed + 1)
    costs = a @ b.mT
    elements, values = step.best(costs, "auto")
    chosen = action.check(group, elements[0])

    def gain(element: Tensor) -> float:
        return float((a * action.apply(group, element, b, 1)).sum())

    assert gain(chosen) == pytest.approx(values.item(), rel=1e-9, abs=1e-9)
    others = drawn(action, group, 20, seed) if step is not LINEAR else []
    for other in others:
        if step is PLANE:
            other = other / other.norm(dim=-1, keepdim=True)
        assert gain(other) <= values.item() + 1e-9


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.kind)
def test_a_planted_element_is_found(step: Step) -> None:
    group = inside(step.kind, 6)
    action = action_of(group)
    if step is LINEAR:
        planted = random_rotations(1, 6, torch.Generator().manual_seed(3))[0]
    else:
        (planted,) = drawn(action, group, 1, 3)
    if step is PLANE:
        planted = planted / planted.norm(dim=-1, keepdim=True)
    b = some_units(group, 0, 20)
    a = action.apply(group, planted, b, 1)
    found, _ = step.best(a @ b.mT, "auto")
    close(found[0], planted, rtol=1e-9, atol=1e-9)


def test_where_nothing_decides_planes_and_single_units_stay() -> None:
    turns, values = PLANE.best(torch.zeros(1, 4, 4).double(), "auto")
    assert turns.tolist() == [[[1, 0], [1, 0]]]
    assert values.tolist() == [0]
    signs, values = procrustes(torch.tensor([[[0.0]], [[-2.0]]]).double())
    assert signs.flatten().tolist() == [1, -1]
    assert values.tolist() == [0, 2]


def test_each_step_serves_its_kind() -> None:
    for step in STEPS:
        assert step_of(inside(step.kind, 4)) is step
    assert {"orthogonal", "linear", "orthogonal_mean"} == MIXING
