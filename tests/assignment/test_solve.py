"""The assignment solvers against brute force, SciPy and their own optimality certificate."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from lightning_rebasin.assignment import SOLVERS, Assignment, solve_assignment
from lightning_rebasin.assignment.solve import solve_many
from lightning_rebasin.errors import AssignmentError, NonFiniteError

OURS = ("numba", "scipy", "lap")


def total(cost, columns):
    return np.asarray(cost, np.float64)[np.arange(len(cost)), columns].sum()


def certify(cost, result, maximize=True):
    """Complementary slackness proves optimality without trusting any solver."""
    cost = np.asarray(cost, np.float64)
    n = len(cost)
    assert sorted(result.columns) == list(range(n))
    scale = np.abs(cost).max(initial=0.0)
    slack = result.row_duals[:, None] + result.column_duals[None, :] - cost
    if not maximize:
        slack = -slack
    # Duals of adversarial problems may exceed the costs, so the tolerance counts them too.
    bound = (
        1e-12 * n * (scale + np.abs(result.column_duals).max(initial=0.0))
        + 1e-300
    )
    assert slack.min(initial=0.0) >= -bound
    assert (
        np.abs(slack[np.arange(n), result.columns]).max(initial=0.0) <= bound
    )


def families(n, rng):
    base = rng.standard_normal((n, n))
    u, v = np.sort(rng.random(n)), np.sort(rng.random(n))
    yield "gaussian", base
    yield "integers with ties", rng.integers(0, 4, (n, n)).astype(float)
    yield "constant", np.full((n, n), 3.25)
    yield "zeros", np.zeros((n, n))
    yield "rank one", np.outer(u, v)
    yield (
        "rank one and noise",
        100 * np.outer(rng.random(n), rng.random(n)) + 1e-3 * base,
    )
    yield "dominant", base + 8 * np.eye(n)[rng.permutation(n)]
    yield "huge", base * 1e300
    yield "tiny", base * 1e-300
    yield "denormal", base * 1e-315
    yield "offset", base + 1e9
    yield (
        "one outlier",
        np.where(np.arange(n * n).reshape(n, n) == 1, 1e12, base),
    )
    yield "columns offset", base + 1e4 * rng.standard_normal(n)
    yield "rows offset", base + 1e4 * rng.standard_normal((n, 1))
    yield "Machol-Wien", np.outer(np.arange(n), np.arange(n)).astype(float)
    yield (
        "minus Machol-Wien",
        -np.outer(np.arange(n), np.arange(n)).astype(float),
    )


@pytest.mark.parametrize("solver", OURS)
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6])
def test_brute_force(solver, n):
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


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [7, 40, 129])
def test_numba_against_scipy_with_certificate(n, dtype):
    rng = np.random.default_rng(n)
    for name, cost in families(n, rng):
        if dtype == np.float32 and name in ("huge", "tiny", "denormal"):
            cost = cost / 1e300 * 1e37 if name == "huge" else cost * 1e270
        cost = cost.astype(dtype)
        for maximize in (True, False):
            result = solve_assignment(cost, maximize, solver="numba")
            certify(cost, result, maximize)
            best = total(cost, linear_sum_assignment(cost, maximize)[1])
            assert total(cost, result.columns) == pytest.approx(
                best, rel=1e-10
            ), (
                name,
                maximize,
            )


@pytest.mark.parametrize("solver", OURS)
def test_duals_certify_every_solver(solver):
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


@pytest.mark.parametrize("size", [1e3, 1e12, 1e39, 1e300, np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_prices_that_would_drown_the_costs_start_cold(size, dtype):
    rng = np.random.default_rng(0)
    cost = rng.standard_normal((200, 200)).astype(dtype)
    far = Assignment(
        rng.permutation(200),
        np.zeros(200),
        np.sign(rng.standard_normal(200)) * size,
    )
    certify(cost, solve_assignment(cost, warm=far, solver="numba"))


def test_warm_start_gives_the_same_optimum_from_any_state():
    rng = np.random.default_rng(0)
    cost = rng.standard_normal((150, 150))
    result = solve_assignment(cost, solver="numba")
    for step in range(6):
        cost = cost + 10.0 ** (step - 4) * rng.standard_normal(cost.shape)
        result = solve_assignment(cost, warm=result, solver="numba")
        certify(cost, result)
    far = Assignment(
        rng.permutation(150), np.zeros(150), 1e6 * rng.standard_normal(150)
    )
    certify(cost, solve_assignment(cost, warm=far, solver="numba"))
    first = solve_assignment(cost, maximize=False, solver="numba")
    smaller = solve_assignment(
        cost, maximize=False, warm=first, solver="numba"
    )
    certify(cost, smaller, maximize=False)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 12),
    st.integers(0, 2**31),
    st.sampled_from([1, 2, 5, 1000]),
    st.booleans(),
)
def test_integers_are_exact(n, seed, span, maximize):
    cost = np.random.default_rng(seed).integers(-span, span + 1, (n, n))
    ours = solve_assignment(cost, maximize, solver="numba")
    certify(cost, ours, maximize)
    assert total(cost, ours.columns) == total(
        cost, linear_sum_assignment(cost, maximize)[1]
    )


def test_batch_equals_one_by_one():
    cost = np.random.default_rng(1).standard_normal((5, 8, 8))
    batch = solve_assignment(cost)
    for i in range(5):
        one = solve_assignment(cost[i])
        assert batch.columns[i].tolist() == one.columns.tolist()
        np.testing.assert_allclose(batch.row_duals[i], one.row_duals)


@pytest.mark.parametrize("n", [1, 5, 23, 24, 60])
@pytest.mark.parametrize("layout", ["ties", "offset", "strided"])
def test_many_small_problems_at_once(n, layout):
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
def test_warm_start_at_any_scale(scale, dtype):
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


def test_empty_and_single():
    assert solve_assignment(np.empty((0, 0))).columns.shape == (0,)
    assert solve_assignment(np.empty((0, 3, 3))).columns.shape == (0, 3)
    for solver in SOLVERS:
        one = solve_assignment([[-2.5]], solver=solver)
        assert one.columns.tolist() == [0]
        certify([[-2.5]], one)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("solver", SOLVERS)
def test_non_finite_is_refused_with_its_name(bad, solver):
    cost = np.ones((4, 4))
    cost[2, 1] = bad
    with pytest.raises(NonFiniteError, match=r"layer\.weight.*\[2, 1\]"):
        solve_assignment(cost, solver=solver, name="layer.weight")


def test_sum_that_overflows_is_still_finite():
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
def test_ill_posed_problems_are_refused(cost):
    with pytest.raises(AssignmentError):
        solve_assignment(cost)


def test_options_are_checked():
    with pytest.raises(AssignmentError, match="solver must be one of"):
        solve_assignment(np.ones((2, 2)), solver="gpu")
    with pytest.raises(AssignmentError, match="warm start"):
        solve_assignment(
            np.ones((3, 3)), warm=solve_assignment(np.ones((2, 2)))
        )


def test_input_is_not_written_to():
    cost = (
        np.random.default_rng(2).standard_normal((200, 200)).astype(np.float32)
    )
    before = cost.copy()
    solve_assignment(cost)
    solve_assignment(cost, maximize=False)
    assert np.array_equal(cost, before)
