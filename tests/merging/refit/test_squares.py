"""Least squares from sums, against NumPy on the rows themselves."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers.layers import normal
from numpy.typing import NDArray
from torch import Tensor

from lightning_rebasin.merging.refit.squares import (
    RIDGES,
    Problem,
    Sums,
    solve,
    target_variance,
)

CPU = torch.device("cpu")
GROUPS, INPUTS, OUTPUTS = 2, 5, 3


def summed(x: Tensor, r: Tensor) -> Sums:
    sums = Sums(x.shape[1], x.shape[2], r.shape[2], CPU)
    for part_x, part_r in zip(x.split(37), r.split(37), strict=True):
        sums.update(part_x, part_r)
    return sums


def rows(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Inputs away from zero, and missing parts that depend on them."""
    x = 0.5 + normal(count, GROUPS, INPUTS, seed=seed)
    planted = normal(GROUPS, INPUTS, OUTPUTS, seed=100)
    noise = normal(count, GROUPS, OUTPUTS, seed=seed + 1)
    r = torch.einsum("rgn,gnm->rgm", x, planted) + 0.3 * noise + 1.5
    return x, r


def empty() -> Sums:
    return Sums(GROUPS, INPUTS, OUTPUTS, CPU)


def ridge_solution(  # the definition, on the rows of one group
    x: NDArray[np.float64],
    r: NDArray[np.float64],
    weight: NDArray[np.float64],
    ridge: float,
    *,
    intercept: bool,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    count, width = x.shape
    target = r + x @ weight
    towards = weight * (target.std(0) / (x @ weight).std(0))
    mean_x = x.mean(0) if intercept else np.zeros(width)
    mean_r = r.mean(0) if intercept else np.zeros(r.shape[1])
    scale = np.square(x - mean_x).sum(0).mean() / count
    # the ridge as further rows: √(ρ·scale·count) · (W + Δ) should be that of W₀
    pull = math.sqrt(ridge * scale * count)
    design = np.r_[x - mean_x, pull * np.eye(width)]
    wanted = np.r_[r - mean_r, pull * (towards - weight)]
    change = np.linalg.lstsq(design, wanted, rcond=None)[0]
    return change, mean_r - mean_x @ change


@pytest.mark.parametrize("ridge", [0.0, 1e-3, 1.0])
@pytest.mark.parametrize("intercept", [True, False])
def test_one_ridge_is_the_definition(ridge: float, intercept: bool) -> None:
    x, r = rows(200)
    weight = normal(GROUPS, INPUTS, OUTPUTS, seed=7)
    problem = Problem(summed(x, r), empty(), weight, intercept)
    found = solve(problem, [ridge])
    for g in range(GROUPS):
        change, shift = ridge_solution(
            x[:, g].numpy(),
            r[:, g].numpy(),
            weight[g].numpy(),
            ridge,
            intercept=intercept,
        )
        np.testing.assert_allclose(found.change[g], change, atol=1e-9)
        np.testing.assert_allclose(found.shift[g], shift, atol=1e-9)


def test_an_infinite_ridge_gives_mean_and_deviation_of_the_target() -> None:
    x, r = rows(200)
    weight = normal(GROUPS, INPUTS, OUTPUTS, seed=7)
    found = solve(
        Problem(summed(x, r), empty(), weight, intercept=True), [math.inf]
    )
    target = r + torch.einsum("rgn,gnm->rgm", x, weight)
    new = torch.einsum("rgn,gnm->rgm", x, weight + found.change) + found.shift
    torch.testing.assert_close(new.mean(0), target.mean(0))
    torch.testing.assert_close(new.std(0), target.std(0))
    # nothing but a factor per output
    factor = (weight + found.change) / weight
    torch.testing.assert_close(factor, factor[:, :1].expand_as(factor))


def test_the_error_is_that_of_the_rows() -> None:
    x, r = rows(150)
    change = normal(GROUPS, INPUTS, OUTPUTS, seed=3)
    shift = normal(GROUPS, OUTPUTS, seed=4)
    left = r - torch.einsum("rgn,gnm->rgm", x, change) - shift
    expected = float(left.square().sum((1, 2)).mean())
    found = summed(x, r).error(change, shift)
    assert found == pytest.approx(expected, rel=1e-12)


def test_sums_of_parts_add_up_to_those_of_all_rows() -> None:
    x, r = rows(150)
    both = summed(x[:60], r[:60]) + summed(x[60:], r[60:])
    whole = summed(x, r)
    assert both.count == whole.count == 150
    flat = x.transpose(0, 1)
    torch.testing.assert_close(both.xx, flat.transpose(1, 2) @ flat)
    torch.testing.assert_close(both.xr, flat.mT @ r.transpose(0, 1))
    torch.testing.assert_close(both.x, x.sum(0))
    torch.testing.assert_close(both.r, r.sum(0))
    torch.testing.assert_close(both.rr, r.square().sum(0))
    torch.testing.assert_close(whole.xx, both.xx)


def test_no_rows_change_no_sums() -> None:
    sums = empty()
    sums.update(normal(0, GROUPS, INPUTS), normal(0, GROUPS, OUTPUTS))
    assert sums.count == 0
    assert bool(sums.xx.isfinite().all())


def test_inputs_far_from_zero_keep_their_covariance() -> None:
    """In float32 the squares of 1000 ± 0.1 differ by less than they are rounded."""
    x = (1000 + 0.1 * normal(400, 1, INPUTS)).float()
    planted = normal(1, INPUTS, 1, seed=100)
    r = (torch.einsum("rgn,gnm->rgm", x.double(), planted)).float()
    weight = torch.zeros(1, INPUTS, 1, dtype=torch.float64)
    found = solve(
        Problem(summed(x, r), summed(x, r), weight, intercept=True), [0.0]
    )
    torch.testing.assert_close(found.change, planted, atol=5e-3, rtol=0)


@pytest.mark.parametrize(("noise", "lowest"), [(0.0, True), (30.0, False)])
def test_the_ridge_with_the_smallest_held_out_error_is_chosen(
    noise: float, lowest: bool
) -> None:
    """Many clean rows want no ridge; a few noisy ones are better off with much of it."""
    count = 400 if lowest else 8
    planted = normal(1, INPUTS, 1, seed=100)

    def sums(rows_: int, seed: int) -> Sums:
        x = normal(rows_, 1, INPUTS, seed=seed)
        r = torch.einsum("rgn,gnm->rgm", x, planted)
        return summed(x, r + noise * normal(rows_, 1, 1, seed=seed + 1))

    weight = normal(1, INPUTS, 1, seed=9)
    problem = Problem(sums(count, 1), sums(5000, 3), weight, intercept=True)
    found = solve(problem)
    tried = {}
    for ridge in RIDGES:
        alone = Problem(problem.fit, empty_one(), weight, intercept=True)
        single = solve(alone, [ridge])
        error = problem.held_out.error(single.change, single.shift)
        tried[ridge] = error
    assert found.ridge == min(tried, key=lambda ridge: tried[ridge])
    assert (found.ridge == RIDGES[0]) == lowest
    variance = target_variance(problem.fit + problem.held_out, problem)
    assert found.after * variance == pytest.approx(min(tried.values()))
    assert found.before * variance == pytest.approx(tried[math.inf])


def empty_one() -> Sums:
    return Sums(1, INPUTS, 1, CPU)


def test_the_final_solution_uses_the_judging_rows_too() -> None:
    x, r = rows(200)
    weight = normal(GROUPS, INPUTS, OUTPUTS, seed=7)
    split = Problem(
        summed(x[:150], r[:150]),
        summed(x[150:], r[150:]),
        weight,
        intercept=True,
    )
    whole = Problem(summed(x, r), empty(), weight, intercept=True)
    found, expected = solve(split, [1e-3]), solve(whole, [1e-3])
    torch.testing.assert_close(found.change, expected.change)
    torch.testing.assert_close(found.shift, expected.shift)


@pytest.mark.parametrize("ridges", [RIDGES, (0.0,), (1e-5,), (math.inf,)])
def test_constant_inputs_give_a_finite_shift(ridges: tuple[float]) -> None:
    x = torch.ones(50, GROUPS, INPUTS, dtype=torch.float64)
    r = torch.full((50, GROUPS, OUTPUTS), 2.0, dtype=torch.float64)
    weight = normal(GROUPS, INPUTS, OUTPUTS)
    found = solve(
        Problem(summed(x, r), summed(x, r), weight, intercept=True), ridges
    )
    product = torch.einsum("rgn,gnm->rgm", x, found.change) + found.shift
    torch.testing.assert_close(product, r)
    assert found.before < 1e-9
    assert found.after < 1e-9


def test_the_variance_of_a_constant_target_is_no_rounding_error() -> None:
    """A tenth is no sum of powers of two: its variance comes out as rounding error, by which nothing is divided."""
    x = torch.full((50, 1, INPUTS), 0.1)
    r = torch.full((50, 1, 1), 0.3)
    weight = normal(1, INPUTS, 1)
    problem = Problem(summed(x, r), empty_one(), weight, intercept=True)
    level = float((x[0, 0].double() @ weight[0]) ** 2) + 0.09
    assert target_variance(problem.fit, problem) >= 0.99e-12 * level


def test_a_dead_output_is_shifted_and_not_scaled() -> None:
    x, r = rows(100)
    weight = normal(GROUPS, INPUTS, OUTPUTS)
    weight[:, :, 0] = 0
    found = solve(
        Problem(summed(x, r), empty(), weight, intercept=True), [math.inf]
    )
    assert bool((found.change[:, :, 0] == 0).all())
    torch.testing.assert_close(found.shift[:, 0], r.mean(0)[:, 0])
    assert bool((found.change[:, :, 1:] != 0).all())


def test_the_fallback_scales_by_a_thousand_at_most() -> None:
    x, r = normal(100, 1, 1), 1e6 * normal(100, 1, 1, seed=2)
    weight = torch.ones(1, 1, 1, dtype=torch.float64)
    found = solve(
        Problem(summed(x, r), empty_one1(), weight, intercept=True), [math.inf]
    )
    assert float(weight + found.change) == pytest.approx(1000)


def empty_one1() -> Sums:
    return Sums(1, 1, 1, CPU)
