"""Single assignment problems against SciPy and lap, on the cost matrices of real descents.

pytest -m benchmark tests/benchmarks/bench_assignment.py -s
"""

import statistics

import numpy as np
import pytest
import torch
from helpers.planted import chain
from helpers.shared import shared_path
from helpers.timing import cpu_seconds
from helpers.trained import mlp_table, trained_mlp

from lightning_rebasin.assignment import solve_assignment
from lightning_rebasin.assignment.solve import solve_in_place
from lightning_rebasin.matching import match_weights
from lightning_rebasin.matching.search.descent import CoordinateDescent
from lightning_rebasin.symmetry.spec.spec import PermutationSpec

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(3600)]


def recorded(table, a, b):
    """Every ``(group, cost matrix)`` that a descent solves, in order."""
    found = []
    solve = CoordinateDescent._solve

    def record(self, group, cost):
        found.append((group, cost.copy()))
        return solve(self, group, cost)

    CoordinateDescent._solve = record
    try:
        match_weights(
            PermutationSpec.from_table(table, a), a, b, init="identity"
        )
    finally:
        CoordinateDescent._solve = solve
    return found


def value(cost, columns):
    return cost[np.arange(len(cost)), columns].astype(np.float64).sum()


def ours_cold(cost):
    prices, held = np.zeros(len(cost)), np.full(len(cost), -1)
    solve_in_place(cost, prices, held, warm=False)
    return held


def cold(name, costs):
    ratios, mine, best = [], [], []
    ours_cold(costs[0][1])
    for _, cost in costs:
        own, held = cpu_seconds(lambda: ours_cold(cost))
        others = [
            cpu_seconds(lambda: solver(cost))
            for solver in (scipy_columns, lap_columns)
        ]
        assert value(cost, held) == pytest.approx(
            max(value(cost, columns) for _, columns in others), rel=1e-6
        )
        mine.append(own)
        best.append(min(seconds for seconds, _ in others))
        ratios.append(best[-1] / own)
    print(
        f"\n| cold LAP, {name}, {len(costs)} problems | {statistics.median(best):.4g} | {statistics.median(mine):.4g} "
        f"| **{statistics.median(ratios):.1f}×** | 4× / 8× |"
    )


def scipy_columns(cost):
    from scipy.optimize import linear_sum_assignment

    return linear_sum_assignment(cost, maximize=True)[1]


def lap_columns(cost):
    from lap import lapjv

    return lapjv(-cost.astype(np.float64))[1]


@pytest.mark.parametrize("n", [512, 1024, 2048])
def test_random_networks(n):
    torch.set_num_threads(1)
    costs = recorded(*chain((784, n, n, n, 10), 0))
    cold(f"late descent of random MLPs, n = {n}", costs[-8:])
    if n == 1024:
        warm(f"random MLPs, n = {n}", costs)


@pytest.mark.parametrize("n", [512, 1024])
def test_trained_networks(n):
    shared_path("data/mnist")
    torch.set_num_threads(1)
    costs = recorded(
        mlp_table(), trained_mlp(0, width=n), trained_mlp(1, width=n)
    )
    cold(f"trained MLPs, n = {n}", costs[-12:])
    warm(f"trained MLPs, n = {n}", costs)


def warm(name, costs, passes=5):
    """Every visit of a descent from the duals of the last one; the median of some passes for each.

    Each solver gets a copy made just before, as a descent has just written the matrix that it solves.
    """
    seconds = {
        i: ([], [])
        for i, (group, _) in enumerate(costs)
        if group in {g for g, _ in costs[:i]}
    }
    for _ in range(passes):
        state = {}
        for i, (group, cost) in enumerate(costs):
            prices, held = state.setdefault(
                group, (np.zeros(len(cost)), np.full(len(cost), -1))
            )
            fresh = cost.copy()
            own, _ = cpu_seconds(
                lambda: solve_in_place(fresh, prices, held, warm=i in seconds)
            )
            if i in seconds:
                fresh = cost.copy()
                other, columns = cpu_seconds(lambda: scipy_columns(fresh))
                assert value(cost, held) == pytest.approx(
                    value(cost, columns), rel=1e-6
                )
                seconds[i][0].append(own)
                seconds[i][1].append(other)
    mine, theirs = (
        [statistics.median(visit[k]) for visit in seconds.values()]
        for k in (0, 1)
    )
    ratio = statistics.median(y / x for x, y in zip(mine, theirs, strict=True))
    print(
        f"\n| warm re-solve, {name}, {len(mine)} visits | {statistics.median(theirs):.4g} "
        f"| {statistics.median(mine):.4g} | **{ratio:.1f}×** | 20× / 40× |"
    )


@pytest.mark.parametrize("n", [3072])
def test_cold_rank_one_dominated(n):
    rng = np.random.default_rng(0)
    cost = (
        np.outer(rng.random(n), rng.random(n))
        + 0.01 * rng.standard_normal((n, n))
    ).astype(np.float32)
    cold(f"rank-one dominated, n = {n}", [("", cost)])


def test_first_call():
    """What the first compiled call of an installation costs, in a fresh process with an empty cache."""
    import os
    import subprocess
    import sys
    import tempfile

    code = (
        "import time, numpy as np; from lightning_rebasin.assignment import solve_assignment as s;"
        "c = np.random.default_rng(0).standard_normal((200, 200)).astype('float32');"
        "w, p = time.perf_counter(), time.process_time(); s(c);"
        "print(f'{time.perf_counter() - w:.2f} s wall, {time.process_time() - p:.2f} s CPU')"
    )
    with tempfile.TemporaryDirectory() as folder:
        for what in (
            "first call of an installation",
            "first call of a later process",
        ):
            environment = {**os.environ, "NUMBA_CACHE_DIR": folder}
            out = subprocess.run(
                [sys.executable, "-c", code],
                env=environment,
                capture_output=True,
                text=True,
                check=True,
            )
            print(f"\n{what}: {out.stdout.strip()}")


def test_solve_assignment_itself():
    cost = (
        np.random.default_rng(0)
        .standard_normal((1024, 1024))
        .astype(np.float32)
    )
    solve_assignment(cost)
    own, _ = cpu_seconds(lambda: solve_assignment(cost))
    other, _ = cpu_seconds(lambda: scipy_columns(cost))
    print(
        f"\n| cold LAP, Gaussian, n = 1024 | {other:.4g} | {own:.4g} | **{other / own:.1f}×** | |"
    )
