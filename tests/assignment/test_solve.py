"""The assignment solvers against brute force and SciPy, one by one and many at once."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from helpers.assignments import certify, families, total
from scipy.optimize import linear_sum_assignment

from lightning_rebasin.assignment import SOLVERS, Assignment, solve_assignment
from lightning_rebasin.assignment.solve import (
    checked_solver,
    solve_batch,
    solve_columns,
    solve_many,
)
from lightning_rebasin.errors import AssignmentError, ConfigurationError

OURS = ("numba", "scipy", "lap")


@pytest.mark.parametrize("solver", OURS)
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6])
def test_brute_force(solver: Any, n: int) -> None:
    rng = np.random.default_rng(n)
    for name, cost in families(n, rng):
        if solver == "lap" and name in ("huge", "tiny", "denormal"):
            continue  # lap fails on its own there: it is kept as an oracle, not recommended
        best = max(
            total(cost, list(p)) for p in itertools.permutations(range(n))
        )
        assert total(
            cost, solve_assignment(cost, solver=solver).columns
        ) == pytest.approx(best, rel=1e-12), name


@pytest.mark.parametrize("size", [1e3, 1e12, 1e39, 1e300, np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_prices_that_would_drown_the_costs_start_cold(
    size: float, dtype: Any
) -> None:
    rng = np.random.default_rng(0)
    cost = rng.standard_normal((200, 200)).astype(dtype)
    far = Assignment(
        rng.permutation(200),
        np.zeros(200),
        np.sign(rng.standard_normal(200)) * size,
    )
    certify(cost, solve_assignment(cost, warm=far, solver="numba"))


def test_batch_equals_one_by_one() -> None:
    cost = np.random.default_rng(1).standard_normal((5, 8, 8))
    batch = solve_assignment(cost)
    for i in range(5):
        one = solve_assignment(cost[i])
        assert batch.columns[i].tolist() == one.columns.tolist()
        np.testing.assert_allclose(batch.row_duals[i], one.row_duals)


@pytest.mark.parametrize("n", [1, 5, 23, 24, 60])
@pytest.mark.parametrize("layout", ["ties", "offset", "strided"])
def test_many_small_problems_at_once(n: int, layout: str) -> None:
    rng = np.random.default_rng(n)
    costs = (
        rng.integers(0, 3, (7, n, n)).astype(np.float32)
        if layout == "ties"
        else rng.standard_normal((7, n, n))
    )
    costs = (
        costs + 1e9 * rng.standard_normal((7, n, 1))
        if layout == "offset"
        else costs
    )
    costs = costs.transpose(0, 2, 1) if layout == "strided" else costs
    before = costs.copy()
    for cost, columns in zip(costs, solve_many(costs), strict=True):
        best = cost[
            np.arange(n), linear_sum_assignment(cost, maximize=True)[1]
        ].sum(dtype=np.float64)
        assert sorted(columns) == list(range(n))
        assert cost[np.arange(n), columns].sum(
            dtype=np.float64
        ) == pytest.approx(best, rel=1e-12)
    assert np.array_equal(costs, before), "the costs are the caller's"


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_warm_start_at_any_scale(scale: float, dtype: Any) -> None:
    rng = np.random.default_rng(0)
    cost = (scale * rng.standard_normal((200, 200))).astype(dtype)
    first = solve_assignment(cost, solver="numba")
    cost[rng.integers(0, 200, 30)] = (
        scale * rng.standard_normal((30, 200))
    ).astype(dtype)
    again = solve_assignment(cost, warm=first, solver="numba")
    certify(
        cost.astype(np.float64) / scale,
        Assignment(
            again.columns, again.row_duals / scale, again.column_duals / scale
        ),
    )


def test_empty_and_single() -> None:
    assert solve_assignment(np.empty((0, 0))).columns.shape == (0,)
    assert solve_assignment(np.empty((0, 3, 3))).columns.shape == (0, 3)
    for solver in SOLVERS:
        one = solve_assignment([[-2.5]], solver=solver)
        assert one.columns.tolist() == [0]
        certify([[-2.5]], one)


def test_options_are_checked() -> None:
    unknown: Any = "gpu"
    with pytest.raises(AssignmentError, match="solver must be one of"):
        solve_assignment(np.ones((2, 2)), solver=unknown)
    with pytest.raises(AssignmentError, match="warm start"):
        solve_assignment(
            np.ones((3, 3)), warm=solve_assignment(np.ones((2, 2)))
        )


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_takes_a_batch_of_any_layout(solver: Any) -> None:
    rng = np.random.default_rng(3)
    values = rng.standard_normal((4, 9, 9)).transpose(0, 2, 1)
    kept = values.copy()
    for value, columns in zip(
        values, solve_batch(values, solver), strict=True
    ):
        best = linear_sum_assignment(value, maximize=True)[1]
        assert columns.tolist() == best.tolist()
        if solver != "numba":
            assert solve_columns(value, solver).tolist() == best.tolist()
    assert np.array_equal(values, kept)
    assert solve_batch(np.empty((2, 0, 0)), solver).shape == (2, 0)


def test_a_solver_that_does_not_exist_is_refused_with_those_that_do() -> None:
    message = "solver must be one of auto, scipy, lap, numba, not 'gpu'"
    with pytest.raises(ConfigurationError, match=message):
        checked_solver("gpu")
    assert [checked_solver(name) for name in SOLVERS] == list(SOLVERS)


def test_a_batch_starts_warm_problem_by_problem() -> None:
    rng = np.random.default_rng(4)
    cost = rng.standard_normal((3, 12, 12))
    first = solve_assignment(cost, solver="numba")
    again = solve_assignment(cost, warm=first, solver="numba")
    for i in range(3):
        one = Assignment(
            again.columns[i], again.row_duals[i], again.column_duals[i]
        )
        certify(cost[i], one)
    assert np.array_equal(again.columns, first.columns)
