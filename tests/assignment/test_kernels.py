"""The compiled solver: every stage by itself, and the whole against SciPy and its own certificate."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from helpers.assignments import certify, families, total
from hypothesis import given, settings
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from lightning_rebasin.assignment import Assignment, kernels, solve_assignment
from lightning_rebasin.assignment.kernels import BLOCK, solve, spread


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [7, 40, 129])
def test_numba_against_scipy_with_certificate(n: int, dtype: Any) -> None:
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


def test_warm_start_gives_the_same_optimum_from_any_state() -> None:
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
def test_integers_are_exact(
    n: int, seed: int, span: int, maximize: bool
) -> None:
    cost = np.random.default_rng(seed).integers(-span, span + 1, (n, n))
    ours = solve_assignment(cost, maximize, solver="numba")
    certify(cost, ours, maximize)
    assert total(cost, ours.columns) == total(
        cost, linear_sum_assignment(cost, maximize)[1]
    )


def free(n: int) -> NDArray[np.int64]:
    """Nobody holds a column."""
    return np.full(n, -1, np.int64)


def optimum(cost: NDArray[Any]) -> float:
    """The largest sum, from SciPy."""
    return total(cost, linear_sum_assignment(cost, maximize=True)[1])


def integers(n: int, seed: int, span: int) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    return rng.integers(-span, span + 1, (n, n)).astype(np.float64)


def check_slackness(
    a: NDArray[Any],
    p: NDArray[Any],
    held: NDArray[np.int64],
    epsilon: float = 0.0,
) -> None:
    """Rows that hold a column hold one of their best, no two rows the same."""
    value = a.astype(np.float64) - p
    rows = np.flatnonzero(held >= 0)
    assert len(set(held[rows])) == len(rows)
    missed = value[rows].max(1, initial=-np.inf) - value[rows, held[rows]]
    assert (missed <= epsilon).all()


@pytest.mark.parametrize(
    "n", [1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 2 * BLOCK + 3]
)
@pytest.mark.parametrize("span", [1, 10**6])
@pytest.mark.parametrize(
    ("row_dtype", "price_dtype"),
    [
        (np.float32, np.float32),
        (np.float32, np.float64),
        (np.float64, np.float64),
    ],
)
def test_a_scan_finds_the_two_best_values_of_a_row(
    n: int, span: int, row_dtype: Any, price_dtype: Any
) -> None:
    """Small spans are full of ties; sizes around a block are where positions go wrong."""
    rng = np.random.default_rng(n)
    for _ in range(20):
        row = rng.integers(0, span + 1, n).astype(row_dtype)
        prices = rng.integers(0, span + 1, n).astype(price_dtype)
        maxima = np.empty(-(-n // BLOCK), price_dtype)
        column, first, second = kernels._scan(row, prices, maxima)
        value = row.astype(np.float64) - prices
        ordered = sorted(value, reverse=True)
        assert first == ordered[0] == kernels._best(row, prices)
        assert column == value.argmax()
        assert second == (ordered[1] if n > 1 else -np.inf)


def test_owners_are_the_inverse_of_what_is_held() -> None:
    held = np.array([2, -1, 0, -1])
    assert kernels._owners(held).tolist() == [2, -1, 0, -1]
    held = np.array([1, 2, 0])
    assert kernels._owners(held).tolist() == [2, 0, 1]


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 12), st.integers(0, 2**31), st.sampled_from([1, 50]))
def test_an_auction_ends_within_epsilon_per_row_of_the_optimum(
    n: int, seed: int, span: int
) -> None:
    cost = integers(n, seed, span)
    held, prices, epsilon = free(n), np.zeros(n), 0.25
    kernels._auction(cost, prices, held, epsilon, 10**6)
    assert sorted(held) == list(range(n))
    check_slackness(cost, prices, held, epsilon + 1e-9)
    found = total(cost, held)
    assert optimum(cost) - n * epsilon - 1e-9 <= found <= optimum(cost)


def test_an_auction_stops_when_its_bids_run_out() -> None:
    cost = np.random.default_rng(0).standard_normal((30, 30))
    for budget in (0, 1, 7):
        held, prices = free(30), np.zeros(30)
        kernels._auction(cost, prices, held, 0.01, budget)
        # Every bid raises one price.
        assert 0 <= (held >= 0).sum() <= budget
        assert (prices > 0).sum() <= budget
        check_slackness(cost, prices, held, 0.01 + 1e-12)


def test_content_rows_keep_their_columns_in_an_auction() -> None:
    cost = np.array([[5.0, 0.0], [4.9, 0.0]])
    held, prices = np.array([0, -1]), np.array([5.0, 0.0])
    kernels._auction(cost, prices, held, 0.5, 10)
    # Row 0 is indifferent and keeps its column; row 1 finds the other cheaper.
    assert held.tolist() == [0, 1]
    assert prices[0] == 5.0


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 12), st.integers(0, 2**31), st.sampled_from([1, 50]))
def test_row_reduction_keeps_slackness_and_lists_who_is_free(
    n: int, seed: int, span: int
) -> None:
    cost = integers(n, seed, span)
    held, owner, prices = free(n), free(n), np.zeros(n)
    waiting = np.arange(n)
    maxima = np.empty(1)
    left = kernels._reduce(
        cost, prices, owner, held, waiting, n, maxima, 10 * n
    )
    assert sorted(waiting[:left]) == np.flatnonzero(held < 0).tolist()
    check_slackness(cost, prices, held)
    assert owner.tolist() == kernels._owners(held).tolist()


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 12), st.integers(0, 2**31), st.sampled_from([1, 50]))
def test_shortest_augmenting_paths_alone_solve_the_problem(
    n: int, seed: int, span: int
) -> None:
    """One row more with each path, from prices that mean nothing."""
    cost = integers(n, seed, span)
    prices = integers(n, seed + 1, span)[0]
    held, owner = free(n), free(n)
    dist, final = np.empty(n), np.empty(n)
    pred, scanned = free(n), free(n)
    for row in range(n):
        kernels._augment(
            cost, prices, owner, held, row, dist, pred, scanned, final
        )
        assert (held >= 0).tolist() == [i <= row for i in range(n)]
        check_slackness(cost, prices, held)
        assert owner.tolist() == kernels._owners(held).tolist()
    assert total(cost, held) == optimum(cost)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 12), st.integers(0, 2**31), st.data())
def test_any_prices_and_any_partial_assignment_are_finished_exactly(
    n: int, seed: int, data: st.DataObject
) -> None:
    cost, prices = integers(n, seed, 9), integers(n, seed + 1, 9)[0]
    order = data.draw(st.permutations(range(n)))
    kept = data.draw(st.lists(st.booleans(), min_size=n, max_size=n))
    held = np.array(
        [c if k else -1 for c, k in zip(order, kept, strict=True)], np.int64
    )
    assert kernels._finish(cost, prices, held, 2 * n, n)
    assert sorted(held) == list(range(n))
    check_slackness(cost, prices, held)
    assert total(cost, held) == optimum(cost)


def test_finishing_gives_up_on_too_many_free_rows() -> None:
    # All want column 0, and without a bid nobody holds anything.
    cost = np.zeros((4, 4))
    cost[:, 0] = 9.0
    for limit, finished in ((3, False), (4, True)):
        held = free(4)
        assert kernels._finish(cost, np.zeros(4), held, 0, limit) is finished
        assert (held >= 0).all() == finished


@pytest.mark.parametrize("n", [1, 5, 15, 64, 100])
def test_the_spread_is_the_standard_deviation_of_some_rows(n: int) -> None:
    a = np.random.default_rng(n).standard_normal((n, n)) * 3 + 100
    rows = a[:: max(1, n // 8)]
    assert spread(a) == pytest.approx(rows.std(), rel=1e-9)


def test_the_spread_of_extreme_costs() -> None:
    assert spread(np.full((9, 9), 7.0)) == 0.0
    # Far from zero nothing is lost, for it is taken around the first entry.
    a = np.random.default_rng(0).standard_normal((10, 10))
    assert spread(a + 1e9) == pytest.approx(a.std(), rel=1e-6)
    assert not np.isfinite(spread(a * 1e300))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("warm", [False, True])
def test_all_stages_together_give_optimal_prices(
    dtype: Any, warm: bool
) -> None:
    rng = np.random.default_rng(6)
    for n in (1, 2, 3, 70, 130):
        cost = rng.standard_normal((n, n)).astype(dtype)
        held, prices = free(n), np.zeros(n)
        if warm:
            held = rng.permutation(n)
            prices = rng.standard_normal(n)
        solve(cost, prices, held, warm=warm, scale=spread(cost))
        value = cost.astype(np.float64) - prices
        rows = value[np.arange(n), held]
        certify(cost, Assignment(held, rows, prices))
        assert total(cost, held) == pytest.approx(optimum(cost), rel=1e-12)
