"""The linear assignment problem: which column for which row, each used once, largest (or smallest) sum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment


@dataclass(frozen=True, eq=False)
class Assignment:
    """An optimal assignment."""

    columns: NDArray[np.int64]


def solve_assignment(cost: NDArray[Any], maximize: bool = True) -> Assignment:
    """Solve one problem."""
    return Assignment(linear_sum_assignment(cost, maximize)[1])
