"""The compiled solver: ε-scaling auction for a first idea, augmenting row reduction, shortest augmenting paths.

Everything is written for maximisation with prices: row ``i`` wants the column with the largest *value* ``a[i, j] −
p[j]``. An assignment is optimal as soon as every row holds a column of largest value (complementary slackness),
whatever the prices.  Three stages, each starting from the prices of the one before:

1. *Auction*: free rows bid for their best column, raising its price by the advantage over the second best plus ε;
   ε shrinks from phase to phase and starts smaller when warm.  Fast, but only ε-optimal; run in the precision of the
   costs and capped.
2. *Row reduction*: rows whose column is no longer best lose it and bid with ε = 0.
3. *Shortest augmenting paths* (Dijkstra on ``u[i] + p[j] − a[i, j]``) for the rows that remain free.  Exact.

Stages 2 and 3 compute in float64 from the costs as they are, so the result is exact for float32 costs too.

The scans are written so that LLVM vectorises them: maxima over blocks of 64 first, positions afterwards.

Sources: Jonker and Volgenant, "A shortest augmenting path algorithm for dense and sparse linear assignment problems",
Computing 38 (1987); Bertsekas, "Auction algorithms for network flow problems", 1992.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba.extending import intrinsic
from numpy.typing import NDArray

from lightning_rebasin.compiled import compiled

Floats = NDArray[Any]
Columns = NDArray[np.int64]

BLOCK = 64
#: Most phases of the auction, each with a fifth of the last one's ε.
_PHASES = 6


def _maximum(_context: Any, a: Any, b: Any) -> Any:
    """``max(a, b)`` as LLVM's own operation: only so do loops of maxima become vector code, ten times faster."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        kind = arguments[0].type
        maximum = builder.module.declare_intrinsic(
            "llvm.maxnum", [kind], ir.FunctionType(kind, [kind, kind])
        )
        return builder.call(
            maximum, arguments, fastmath=["nnan", "nsz", "reassoc"]
        )

    return a(a, b), generate


_larger: Any = intrinsic(_maximum)


@compiled("nnan", "nsz")
def _best(row: Floats, prices: Floats) -> Any:
    """Best value of a row."""
    best = row[0] - prices[0]
    for j in range(len(row)):
        best = _larger(best, row[j] - prices[j])
    return best


@compiled("nnan", "nsz")
def _scan(row: Floats, prices: Floats, maxima: Floats) -> tuple[int, Any, Any]:
    """Best column of a row, its value, and the second best value."""
    n = len(row)
    whole = n // BLOCK
    for b in range(whole):
        m = row[b * BLOCK] - prices[b * BLOCK]
        for j in range(b * BLOCK, b * BLOCK + BLOCK):
            m = _larger(m, row[j] - prices[j])
        maxima[b] = m
    if whole < len(maxima):
        maxima[whole] = _best(row[whole * BLOCK :], prices[whole * BLOCK :])
    best, first, second = 0, maxima[0], maxima.dtype.type(-np.inf)
    for b in range(1, len(maxima)):
        m = maxima[b]
        if m > first:
            second = first
            first = m
            best = b
        elif m > second:
            second = m
    column = best * BLOCK
    stop = min(column + BLOCK, n)
    while column < stop - 1 and row[column] - prices[column] < first:
        column += 1
    for j in range(best * BLOCK, stop):
        v = row[j] - prices[j]
        second = _larger(second, v if j != column else second)
    return column, first, second


@compiled("nnan", "nsz")
def _owners(held: Columns) -> Columns:
    """The row that holds each column, −1 where none does."""
    owner = np.empty(len(held), np.int64)
    for j in range(len(held)):
        owner[j] = -1
    for i in range(len(held)):
        if held[i] >= 0:
            owner[held[i]] = i
    return owner


@compiled("nnan", "nsz")
def _auction(
    a: Floats, prices: Floats, held: Columns, epsilon: Any, budget: int
) -> None:
    """One phase: rows that are free, or not content within ``epsilon``, bid until all hold a column or bids run out."""
    n = len(a)
    owner = _owners(held)
    maxima = np.empty((n + BLOCK - 1) // BLOCK, a.dtype)
    stack = np.empty(n, np.int64)
    top = 0
    for i in range(n - 1, -1, -1):
        j = held[i]
        if j >= 0 and _best(a[i], prices) > a[i, j] - prices[j] + epsilon:
            owner[j] = -1
            held[i] = -1
            j = -1
        if j < 0:
            stack[top] = i
            top += 1
    while top > 0 and budget > 0:
        budget -= 1
        top -= 1
        i = stack[top]
        j, best, second = _scan(a[i], prices, maxima)
        before = owner[j]
        if before >= 0:
            held[before] = -1
            stack[top] = before
            top += 1
        owner[j] = i
        held[i] = j
        prices[j] += best - second + epsilon


@compiled("nnan", "nsz")
def _reduce(  # noqa: PLR0917
    a: Floats,
    p: Floats,
    owner: Columns,
    held: Columns,
    free: Columns,
    count: int,
    maxima: Floats,
    steps: int,
) -> int:
    """Augmenting row reduction, two rounds, at most ``steps`` bids; returns how many rows stay free (in ``free``)."""
    for _ in range(2):
        k = 0
        left = 0
        total = count
        while k < total and steps > 0:
            steps -= 1
            i = free[k]
            k += 1
            j, first, second = _scan(a[i], p, maxima)
            gap = first - second
            before = owner[j]
            if gap > 0 and second > -np.inf and p[j] + gap > p[j]:
                p[j] += gap
            elif before >= 0:
                free[left] = i
                left += 1
                continue
            owner[j] = i
            held[i] = j
            if before >= 0:
                held[before] = -1
                k -= 1
                free[k] = before
        while k < total:
            free[left] = free[k]
            left += 1
            k += 1
        count = left
        if count == 0 or steps <= 0:
            break
    return count


@compiled("nnan", "nsz")
def _augment(  # noqa: PLR0917
    a: Floats,
    p: Floats,
    owner: Columns,
    held: Columns,
    start: int,
    dist: Floats,
    pred: Columns,
    scanned: Columns,
    final: Floats,
) -> None:
    """One shortest augmenting path from the free row ``start``; keeps complementary slackness."""
    n = len(a)
    inf = np.inf
    row = a[start]
    best = _best(row, p)
    for j in range(n):
        dist[j] = best - (row[j] - p[j])
        pred[j] = start
    low = 0.0
    done = 0
    while True:
        j = -1
        for c in range(n):
            if dist[c] == low:
                if owner[c] < 0:
                    j = c
                    break
                if j < 0:
                    j = c
        if owner[j] < 0:
            break
        scanned[done] = j
        final[done] = low
        done += 1
        dist[j] = -inf  # never improved again, and left out of the minimum
        i = owner[j]
        row = a[i]
        base = low + (row[j] - p[j])
        nearest = -inf
        for c in range(n):
            old = dist[c]
            d = _larger(base - (row[c] - p[c]), low)
            better = d < old
            d = d if better else old
            dist[c] = d
            pred[c] = i if better else pred[c]
            nearest = _larger(nearest, -d if d > -inf else -inf)
        low = max(low, -nearest)
    for k in range(done):
        p[scanned[k]] += low - final[k]
    while True:
        i = pred[j]
        owner[j] = i
        after = held[i]
        held[i] = j
        j = after
        if i == start:
            break


@compiled("nnan", "nsz")
def _finish(
    a: Floats, p: Floats, held: Columns, steps: int, limit: int
) -> bool:
    """Exact optimum from any prices and any partial assignment.

    Gives up, and returns False, if more than ``limit`` rows are free after ``steps`` bids.
    """
    n = len(a)
    owner = _owners(held)
    maxima = np.empty((n + BLOCK - 1) // BLOCK)
    free = np.empty(n, np.int64)
    count = np.int64(
        0
    )  # not a literal: a literal would compile the row reduction once more
    for i in range(n):
        j = held[i]
        if j >= 0 and _best(a[i], p) > a[i, j] - p[j]:
            owner[j] = -1
            held[i] = -1
            j = -1
        if j < 0:
            free[count] = i
            count += 1
    count = _reduce(a, p, owner, held, free, count, maxima, steps)
    if count > limit:
        return False
    dist = np.empty(n)
    pred = np.empty(n, np.int64)
    scanned = np.empty(n, np.int64)
    final = np.empty(n)
    for k in range(count):
        _augment(a, p, owner, held, free[k], dist, pred, scanned, final)
    return True


@compiled("nnan", "nsz")
def _moments(a: Floats, step: int) -> tuple[float, float]:
    """Sum and sum of squares of every ``step``-th row, counted from the first entry."""
    total = 0.0
    squares = 0.0
    origin = np.float64(a[0, 0])
    for i in range(0, len(a), step):
        row = a[i]
        for j in range(len(row)):
            off = row[j] - origin
            total += off
            squares += off * off
    return total, squares


def spread(a: NDArray[Any]) -> float:
    """Standard deviation of some eight rows; infinite or not a number if it is too large for float64."""
    step = max(1, len(a) // 8)
    total, squares = _moments(a, step)
    count = len(range(0, len(a), step)) * len(a)
    mean = total / count
    variance = squares / count - mean * mean
    return variance if math.isnan(variance) else math.sqrt(max(variance, 0.0))


def solve(
    a: NDArray[Any],
    p: NDArray[np.float64],
    held: NDArray[np.int64],
    *,
    warm: bool,
    scale: float,
) -> None:
    """Assign the rows of ``a``, maximising the sum.

    Not compiled itself: compiling it would compile every stage once more in place, which takes longer than all of them.

    Args:
        a: C-contiguous square costs, float32 or float64.
        p: float64 prices to start from; overwritten with optimal ones.
        held: int64 columns to start from, −1 where free; overwritten with the optimal assignment.
        warm: Whether ``p`` and ``held`` come from a similar problem.
        scale: :func:`spread` of the costs: the scale of ε.
    """
    n = len(a)
    epsilon = scale * (0.01 if warm else 0.05)
    for _ in range(_PHASES):
        if epsilon <= 0.0:
            break
        prices = p.astype(a.dtype)
        _auction(a, prices, held, a.dtype.type(epsilon), 40 * n)
        p[:] = prices
        epsilon /= 5.0
        if _finish(a, p, held, 2 * n, _few(n)):
            return
    _finish(a, p, held, 4 * n, n)


def _few(n: int) -> int:
    """How many free rows are left to the shortest augmenting paths without another auction."""
    return 1 + n // 128
