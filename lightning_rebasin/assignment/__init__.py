"""One linear assignment problem: exact, warm-started; the only place that knows the solvers."""

from lightning_rebasin.assignment.solve import Assignment, solve_assignment

__all__ = ["Assignment", "solve_assignment"]
