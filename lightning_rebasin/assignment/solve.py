"""The linear assignment problem: which column for which row, each used once, with the largest (or smallest) sum.

Small problems go to SciPy.  Large ones go to our own compiled solver, which is several times faster on the costs of
weight matching, cold, and an order of magnitude when it can start from the dual variables of a similar problem.  Both
are exact.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from lightning_rebasin.assignment.problem import (
    Assignment,
    Matrix,
    check_cost,
    duals_of,
)
from lightning_rebasin.errors import AssignmentError, ConfigurationError

Solver = Literal["auto", "scipy", "lap", "numba"]
SOLVERS: tuple[Solver, ...] = ("auto", "scipy", "lap", "numba")
#: From this size on ``auto`` uses the compiled solver; below, SciPy is as fast and nothing needs compiling.
COMPILED_FROM = 160
#: From this size on SciPy is faster by more than reducing the costs takes.
_REDUCED_FROM = 24

#: Prices that differ by more than this many times the spread of the costs would drown them in rounding errors, so that
#: the answer need not be optimal any more: they come from another problem, and the start is cold.
_MOST_PRICES = 1e6


def checked_solver(solver: str) -> Solver:
    """The solver of that name.

    Raises:
        ConfigurationError: There is no such solver.
    """
    if solver not in SOLVERS:
        raise ConfigurationError(
            f"solver must be one of {', '.join(SOLVERS)}, not {solver!r}"
        )
    return solver


def solve_assignment(
    cost: Any,
    maximize: bool = True,
    warm: Assignment | None = None,
    solver: Solver = "auto",
    name: str = "cost",
) -> Assignment:
    """Exact optimum of ``Σ_i cost[i, columns[i]]`` over all permutations ``columns``, with the duals that prove it.

    Args:
        cost: ``(n, n)`` finite real numbers, or ``(batch, n, n)`` for many small problems at once; n may be 0.
        maximize: Largest sum; otherwise the smallest.
        warm: The answer to a similar problem of the same size and sense; saves most of the work if it is near.
        solver: ``"numba"``: our own, warm-started; ``"scipy"``; ``"lap"``; ``"auto"``: SciPy below 160 rows, else our
            own.
        name: What to call the costs in an error message: the tensor or group that they belong to.

    Returns:
        The assignment and its dual variables.

    Raises:
        AssignmentError: Not square, not real, an unknown solver, or a warm start of another shape.
        NonFiniteError: The costs hold NaN or infinity.

    Example:
        >>> solve_assignment([[4.0, 1.0], [3.0, 2.0]]).columns.tolist()
        [0, 1]
        >>> solve_assignment([[4.0, 1.0], [3.0, 2.0]], maximize=False).columns.tolist()
        [1, 0]
    """
    if solver not in SOLVERS:
        raise AssignmentError(
            f"solver must be one of {', '.join(SOLVERS)}, not {solver!r}"
        )
    value = check_cost(cost, name)
    value = value if maximize else -value
    if warm is not None and warm.columns.shape != value.shape[:-1]:
        raise AssignmentError(
            f"the warm start is for shape {warm.columns.shape}, {name} needs {value.shape[:-1]}"
        )
    if value.ndim == 2:
        return _solve_one(value, maximize, warm, solver)
    if not uses_compiled(value.shape[-1], solver):
        columns = solve_many(value, solver)
        ones = [
            _certified(one, held, maximize)
            for one, held in zip(value, columns, strict=True)
        ]
    else:
        starts = [None] * len(value) if warm is None else _each(warm)
        ones = [
            _solve_one(one, maximize, start, solver)
            for one, start in zip(value, starts, strict=True)
        ]
    shape = value.shape[:-1]
    return Assignment(
        np.array([one.columns for one in ones], np.int64).reshape(shape),
        np.array([one.row_duals for one in ones], np.float64).reshape(shape),
        np.array([one.column_duals for one in ones], np.float64).reshape(
            shape
        ),
    )


def _each(batch: Assignment) -> list[Assignment | None]:
    parts = zip(
        batch.columns, batch.row_duals, batch.column_duals, strict=True
    )
    return [Assignment(*part) for part in parts]


def _certified(
    value: Matrix, held: NDArray[np.int64], maximize: bool
) -> Assignment:
    rows, prices = duals_of(value, held)
    return (
        Assignment(held, rows, prices)
        if maximize
        else Assignment(held, -rows, -prices)
    )


def _solve_one(
    value: Matrix, maximize: bool, warm: Assignment | None, solver: Solver
) -> Assignment:
    n = len(value)
    if not uses_compiled(n, solver):
        return _certified(value, solve_columns(value, solver), maximize)
    prices = np.zeros(n)
    held = np.full(n, -1, np.int64)
    if warm is not None:
        prices[:] = warm.column_duals if maximize else -warm.column_duals
        held[:] = warm.columns
    solve_in_place(value, prices, held, warm=warm is not None)
    rows = value[np.arange(n), held].astype(np.float64) - prices[held]
    return (
        Assignment(held, rows, prices)
        if maximize
        else Assignment(held, -rows, -prices)
    )


def uses_compiled(n: int, solver: Solver) -> bool:
    """Whether a problem of size ``n`` goes to the compiled solver."""
    return n > 0 and (
        solver == "numba" or (solver == "auto" and n >= COMPILED_FROM)
    )


def solve_columns(value: Matrix, solver: Solver = "auto") -> NDArray[np.int64]:
    """Columns of the largest sum, without validation and without duals; never the compiled solver."""
    columns: NDArray[np.int64] = solve_many(value[None], solver)[0]
    return columns


def solve_many(values: Matrix, solver: Solver = "auto") -> NDArray[np.int64]:
    """As :func:`solve_columns` for a batch: converted and reduced together, for which one call each takes longer.

    Args:
        values: ``(batch, n, n)``, to be maximised, in any layout.
        solver: ``"lap"``; ``"scipy"``: as it is; ``"auto"``: SciPy, from better duals where that pays.

    Returns:
        Columns, int64 ``(batch, n)``.
    """
    columns = np.empty(values.shape[:2], np.int64)
    if not values.size:
        return columns
    if solver == "lap":
        from lap import lapjv

        for i, one in enumerate(
            np.negative(values, dtype=np.float64, order="C")
        ):
            columns[i] = lapjv(one)[1]
        return columns
    if values.shape[-1] >= _REDUCED_FROM and solver == "auto":
        # SciPy starts from zero duals. Losses against the best of each row, then of each column, are a better start
        # for the same problem, up to the last bit of float64.
        loss = np.subtract(
            values.max(2, keepdims=True), values, dtype=np.float64, order="C"
        )
        loss -= loss.min(1, keepdims=True)
    else:
        loss = np.negative(values, dtype=np.float64, order="C")
    for i, one in enumerate(loss):
        columns[i] = linear_sum_assignment(one)[1]
    return columns


def solve_batch(values: Matrix, solver: Solver = "auto") -> NDArray[np.int64]:
    """Columns of the largest sums of many small problems, by the solver that was asked for.

    Args:
        values: ``(batch, n, n)``, to be maximised, in any layout.
        solver: As in :func:`solve_assignment`, but ``"auto"`` is SciPy at any size: the problems of pairs are small.

    Returns:
        Columns, int64 ``(batch, n)``.
    """
    if solver != "numba":
        return solve_many(values, solver)
    columns = np.full(values.shape[:2], -1, np.int64)
    for one, held in zip(values, columns, strict=True):
        value = np.ascontiguousarray(one, dtype=np.float64)
        if len(value):
            solve_in_place(value, np.zeros(len(value)), held, warm=False)
    return columns


def solve_in_place(
    value: Matrix,
    prices: NDArray[np.float64],
    held: NDArray[np.int64],
    *,
    warm: bool,
) -> None:
    """Largest sum by the compiled solver, without validation.

    Args:
        value: ``(n, n)`` C-contiguous, float32 or float64.
        prices: Column duals to start from, zeros if cold; overwritten.
        held: Columns to start from, −1 where free; overwritten.
        warm: Whether the two come from a similar problem.
    """
    from lightning_rebasin.assignment.kernels import solve, spread

    scale, exponent = spread(value), 0
    with np.errstate(over="ignore", invalid="ignore"):
        drowned = (
            warm and not prices.max() - prices.min() <= _MOST_PRICES * scale
        )
    if drowned:
        warm = False
        prices.fill(0.0)
        held.fill(-1)
    if not 1e-15 < scale < 1e15:
        # Far from 1 the bids could overflow or drown: bring the scale near 1 by an exact power of two.
        largest = float(np.abs(value).max())
        exponent = -int(np.frexp(largest)[1]) if largest else 0
        value = np.ldexp(value.astype(np.float64), exponent)
        np.ldexp(prices, exponent, out=prices)
        scale = spread(value)
    solve(value, prices, held, warm=warm, scale=scale)
    if exponent:
        np.ldexp(prices, -exponent, out=prices)
