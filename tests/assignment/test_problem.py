"""What goes into a solver and what comes out: refusals, and duals that prove an answer."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from helpers.assignments import certify
from hypothesis import given, settings
from scipy.optimize import linear_sum_assignment

from lightning_rebasin.assignment import SOLVERS, solve_assignment
from lightning_rebasin.assignment.problem import check_cost, duals_of
from lightning_rebasin.errors import AssignmentError, NonFiniteError

OURS = ("numba", "scipy", "lap")


@pytest.mark.parametrize("solver", OURS)
def test_duals_certify_every_solver(solver: Any) -> None:
    rng = np.random.default_rng(5)
    for cost in (
        rng.standard_normal((30, 30)),
        np.outer(rng.random(20), rng.random(20)),
        np.ones((9, 9)),
    ):
        for maximize in (True, False):
            certify(
                cost, solve_assignment(cost, maximize, solver=solver), maximize
            )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("solver", SOLVERS)
def test_non_finite_is_refused_with_its_name(bad: float, solver: Any) -> None:
    cost = np.ones((4, 4))
    cost[2, 1] = bad
    with pytest.raises(NonFiniteError, match=r"layer\.weight.*\[2, 1\]"):
        solve_assignment(cost, solver=solver, name="layer.weight")


def test_sum_that_overflows_is_still_finite() -> None:
    cost = np.full((3, 3), 1.5e308)
    certify(cost / 1e300, solve_assignment(cost / 1e300, solver="numba"))
    assert sorted(solve_assignment(cost, solver="numba").columns) == [0, 1, 2]


@pytest.mark.parametrize(
    "cost",
    [
        np.ones((2, 3)),
        np.ones(3),
        np.ones((2, 2), complex),
        np.ones((2, 2), object),
    ],
)
def test_ill_posed_problems_are_refused(cost: Any) -> None:
    with pytest.raises(AssignmentError):
        solve_assignment(cost)


def test_input_is_not_written_to() -> None:
    cost = (
        np.random.default_rng(2).standard_normal((200, 200)).astype(np.float32)
    )
    before = cost.copy()
    solve_assignment(cost)
    solve_assignment(cost, maximize=False)
    assert np.array_equal(cost, before)


@pytest.mark.parametrize(
    ("given_dtype", "dtype"),
    [
        (np.float16, np.float32),
        (np.float32, np.float32),
        (np.float64, np.float64),
        (np.int8, np.float64),
        (np.uint64, np.float64),
        (np.bool_, np.float64),
        (np.longdouble, np.float64),
    ],
)
def test_costs_keep_their_values_in_one_of_two_precisions(
    given_dtype: Any, dtype: Any
) -> None:
    cost = np.array([[0, 1], [1, 1]], dtype=given_dtype)
    checked = check_cost(cost, "cost")
    assert checked.dtype == dtype
    assert checked.tolist() == [[0.0, 1.0], [1.0, 1.0]]


def test_a_matrix_that_fits_is_not_copied_and_any_other_becomes_one() -> None:
    fits = np.ones((3, 3), np.float32)
    assert check_cost(fits, "cost") is fits
    turned = np.arange(9.0).reshape(3, 3).T
    checked = check_cost(turned, "cost")
    assert checked.flags.c_contiguous
    assert checked.tolist() == turned.tolist()
    assert check_cost([[1, 2], [3, 4]], "cost").shape == (2, 2)
    assert check_cost(np.empty((0, 0)), "cost").shape == (0, 0)


@pytest.mark.parametrize(
    ("cost", "message"),
    [
        (np.ones((2, 3)), r"w has shape \(2, 3\); an assignment needs"),
        (np.ones(3), r"w has shape \(3,\)"),
        (np.ones((1, 2, 2, 2)), r"w has shape \(1, 2, 2, 2\)"),
        (np.ones((4, 2, 3)), r"w has shape \(4, 2, 3\)"),
        (np.ones((2, 2), complex), "w has dtype complex128"),
        (np.full((2, 2), "x"), "w has dtype <U1"),
    ],
)
def test_refusals_name_the_costs_and_what_is_wrong(
    cost: Any, message: str
) -> None:
    with pytest.raises(AssignmentError, match=message):
        check_cost(cost, "w")


def test_the_first_bad_entry_of_a_batch_is_located() -> None:
    cost = np.zeros((3, 2, 2))
    cost[1, 0, 1] = np.nan
    cost[2, 1, 1] = np.inf
    message = r"w holds nan at \[1, 0, 1\]; an assignment needs finite"
    with pytest.raises(NonFiniteError, match=message):
        check_cost(cost, "w")
    # Infinities of both signs do not cancel.
    cost[1, 0, 1], cost[2, 1, 1] = np.inf, -np.inf
    with pytest.raises(NonFiniteError, match=r"w holds inf at \[1, 0, 1\]"):
        check_cost(cost, "w")


@given(st.integers(1, 9), st.integers(0, 2**31), st.sampled_from([1, 3, 99]))
@settings(deadline=None, max_examples=80)
def test_duals_of_an_optimum_prove_it_exactly(
    n: int, seed: int, span: int
) -> None:
    """Integers, so that nothing rounds: slackness must hold to the last bit."""
    rng = np.random.default_rng(seed)
    value = rng.integers(-span, span + 1, (n, n)).astype(np.float64)
    columns = linear_sum_assignment(value, maximize=True)[1]
    rows, prices = duals_of(value, columns)
    slack = rows[:, None] + prices[None, :] - value
    assert (slack >= 0).all()
    assert (slack[np.arange(n), columns] == 0).all()


def test_duals_can_be_read_off_a_small_problem() -> None:
    # Row 0 prefers column 1 by 2 but must leave it to row 1, so column 1 costs 2.
    value = np.array([[1.0, 3.0], [0.0, 9.0]])
    rows, prices = duals_of(value, np.array([0, 1]))
    assert prices.tolist() == [0.0, 2.0]
    assert rows.tolist() == [1.0, 7.0]
    empty_rows, empty_prices = duals_of(np.empty((0, 0)), np.empty(0, int))
    assert empty_rows.shape == empty_prices.shape == (0,)


def test_an_assignment_says_its_size() -> None:
    one = solve_assignment(np.eye(3))
    assert repr(one) == "Assignment(n=3)"
    many = solve_assignment(np.stack([np.eye(4)] * 2))
    assert repr(many) == "Assignment(n=4)"
