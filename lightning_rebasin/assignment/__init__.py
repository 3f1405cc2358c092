"""One linear assignment problem: exact, warm-started; the only place that knows the solvers."""

from lightning_rebasin.assignment.problem import Assignment
from lightning_rebasin.assignment.solve import (
    SOLVERS,
    Solver,
    solve_assignment,
)

__all__ = ["SOLVERS", "Assignment", "Solver", "solve_assignment"]
