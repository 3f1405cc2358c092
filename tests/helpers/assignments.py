"""Assignment problems of every kind, and the certificate that proves an answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_rebasin.assignment import Assignment


def total(cost: Any, columns: Any) -> float:
    """The sum that an assignment collects."""
    matrix = np.asarray(cost, np.float64)
    return float(matrix[np.arange(len(matrix)), columns].sum())


def certify(cost: Any, result: Assignment, maximize: bool = True) -> None:
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


def families(
    n: int, rng: np.random.Generator
) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """Costs of every kind that an assignment solver may stumble over."""
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
