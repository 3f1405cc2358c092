"""Permutation coordinate descent exactly as in the code of the Git Re-Basin paper (``weight_matching.py``), in torch.

The cost matrix of a group is rebuilt for every visit by permuting every tensor of the source, SciPy solves it, the new
assignment is always taken, progress is ``new > old + 1e-12``.  Only for classical tables, one group or none per axis:
``tensor: (group, None, ...)``.  Kept as the independent reference and as the opponent in the benchmarks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

Axes = Sequence[str | None]


def permuted(
    tensor: Tensor,
    axes: Axes,
    permutation: Mapping[str, Tensor],
    but: int | None = None,
) -> Tensor:
    """``tensor`` with every axis permuted except number ``but``."""
    for axis, group in enumerate(axes):
        if group is not None and axis != but:
            tensor = torch.index_select(tensor, axis, permutation[group])
    return tensor


def cost_matrix(
    table: Mapping[str, Axes],
    group: str,
    reference: Mapping[str, Tensor],
    source: Mapping[str, Tensor],
    permutation: Mapping[str, Tensor],
) -> Tensor:
    """``⟨A_i, B_j⟩`` of the units of a group, all other axes of B permuted."""
    n = len(permutation[group])
    cost = torch.zeros((n, n), dtype=next(iter(reference.values())).dtype)
    for name, axes in table.items():
        for axis, owner in enumerate(axes):
            if owner == group:
                a = torch.moveaxis(reference[name], axis, 0).reshape(n, -1)
                b = torch.moveaxis(
                    permuted(source[name], axes, permutation, axis), axis, 0
                ).reshape(n, -1)
                cost += a @ b.T
    return cost


def objective(
    table: Mapping[str, Axes],
    reference: Mapping[str, Tensor],
    source: Mapping[str, Tensor],
    permutation: Mapping[str, Tensor],
) -> float:
    """``Σ ⟨A, π(B)⟩`` over the tensors of the table, in float64."""
    return sum(
        (
            reference[name].double()
            * permuted(source[name], axes, permutation).double()
        )
        .sum()
        .item()
        for name, axes in table.items()
    )


def weight_matching(
    table: Mapping[str, Axes],
    reference: Mapping[str, Tensor],
    source: Mapping[str, Tensor],
    order: Callable[[int], Sequence[str]],
    init: Mapping[str, Tensor] | None = None,
    max_sweeps: int = 100,
    trace: list[tuple[str, float]] | None = None,
) -> dict[str, Tensor]:
    """``order(sweep)`` gives the groups to visit in that sweep; returns the permutation of each group.

    ``trace``: a list that receives ``(group, objective gain of the visit)``.
    """
    sizes = {
        group: reference[name].shape[axis]
        for name, axes in table.items()
        for axis, group in enumerate(axes)
        if group is not None
    }
    permutation = {group: torch.arange(n) for group, n in sizes.items()}
    permutation.update(init or {})
    for sweep in range(max_sweeps):
        progress = False
        for group in order(sweep):
            cost = cost_matrix(
                table, group, reference, source, permutation
            ).numpy()
            rows, columns = linear_sum_assignment(cost, maximize=True)
            old = cost[rows, permutation[group].numpy()].sum()
            new = cost[rows, columns].sum()
            if trace is not None:
                trace.append((group, float(new - old)))
            progress = progress or new > old + 1e-12
            permutation[group] = torch.as_tensor(columns)
        if not progress:
            break
    return permutation
