"""What goes into an assignment solver and what comes out: validation, and the optimality certificate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_rebasin.errors import AssignmentError, NonFiniteError

Matrix = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Assignment:
    """An optimal assignment with the dual variables that prove it.

    For a maximisation ``row_duals[i] + column_duals[j] ≥ cost[i, j]`` everywhere, with equality where row ``i`` holds
    column ``j`` (complementary slackness); for a minimisation ``≤``.  A batch has one more dimension in front of
    everything.

    Args:
        columns: int64 ``(n,)``; row ``i`` holds column ``columns[i]``.
        row_duals: float64 ``(n,)``.
        column_duals: float64 ``(n,)``; what a warm start needs.
    """

    columns: NDArray[np.int64]
    row_duals: NDArray[np.float64]
    column_duals: NDArray[np.float64]

    def __repr__(self) -> str:
        return f"Assignment(n={self.columns.shape[-1]})"


def check_cost(cost: Any, name: str) -> Matrix:
    """``cost`` as a contiguous float32 or float64 array of finite square matrices.

    Raises:
        AssignmentError: Not a square matrix (or a batch of them) of real numbers.
        NonFiniteError: NaN or infinity, with where it is.
    """
    array = np.asarray(cost)
    if array.ndim not in (2, 3) or array.shape[-1] != array.shape[-2]:
        raise AssignmentError(
            f"{name} has shape {array.shape}; an assignment needs (n, n), or (batch, n, n)"
        )
    if array.dtype.kind not in "fiub":
        raise AssignmentError(
            f"{name} has dtype {array.dtype}; an assignment needs real numbers"
        )
    if array.dtype not in (np.float32, np.float64):
        array = array.astype(
            np.float32 if array.dtype == np.float16 else np.float64
        )
    array = np.ascontiguousarray(array)
    # One cheap pass: a sum is finite unless an entry is not, or the sum itself overflows.
    with np.errstate(over="ignore", invalid="ignore"):
        total = array.sum(dtype=np.float64)
    if not np.isfinite(total) and not np.isfinite(array).all():
        place = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise NonFiniteError(
            f"{name} holds {array[place]} at {list(place)}; an assignment needs finite numbers"
        )
    return array


def duals_of(
    value: Matrix, columns: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Dual variables of an optimal assignment that came without any, by Bellman–Ford.

    Prices must satisfy ``p[j] ≥ p[columns[i]] + value[i, j] − value[i, columns[i]]``: longest paths over the columns,
    which exist because an optimal assignment leaves no cycle that gains.

    Args:
        value: ``(n, n)``, to be maximised.
        columns: An optimal assignment.

    Returns:
        Row and column duals, float64.
    """
    n = len(value)
    gain = value.astype(np.float64)
    own = gain[np.arange(n), columns]
    gain -= own[:, None]
    prices = np.zeros(n)
    for _ in range(n):
        longer = (
            np.maximum(prices, (prices[columns][:, None] + gain).max(0))
            if n
            else prices
        )
        # Rounding can leave cycles that gain a few ulps: stop once nothing moves by more than that.
        if np.allclose(
            longer,
            prices,
            rtol=1e-15,
            atol=1e-15 * (1.0 + np.abs(own).max(initial=0.0)),
        ):
            break
        prices = longer
    return own - prices[columns], prices
