"""Least squares from sums: what a layer should change, given what it sees and what is missing.

With inputs ``x`` (rows × n), the missing part ``r`` (rows × m; target minus present output) and present weights
``W`` the change ``Δ`` minimises

    ‖r − x·Δ − 1·cᵀ‖² / rows  +  ρ · tr(Σ) / n · ‖W + Δ − W₀‖²

with ``Σ`` the covariance of the inputs (or, without an intercept ``c``, their second moment).  ``W₀`` is the present
weight rescaled so that each output has the spread of its target: little data lead to REPAIR, not to nonsense.  ``ρ``
is the one with the smallest error on held-out rows, ``ρ = ∞`` (``W₀`` itself) among them; then both kinds of rows are
solved together.

All that is needed are the sums of ``x``, ``r``, ``xxᵀ``, ``xrᵀ`` and ``r²``: :class:`Sums`.  Their memory does not
grow with the number of rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from lightning_rebasin.merging.processes import Total, total_number

#: What is tried for the ridge.
RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, math.inf)
#: An output that varies less than this, relative to the typical one, is dead: it is shifted, not scaled.
_DEAD = 1e-6
#: A variance this small, relative to the square, is that of a constant in float32.
_CONSTANT = 1e-12
#: What :class:`Sums` holds beside the number of rows.
_PARTS = ("x", "r", "xx", "xr", "rr")
#: Largest factor by which the fallback rescales an output.
_LARGEST_SCALE = 1e3


@final
class Sums:
    """Sums over rows, in float64.

    Products are taken in the precision of the network, float32 at least, about the mean of the rows that are added: the
    covariance of inputs that are far from zero would drown in the rounding errors of their squares.

    Args:
        groups: Number of groups, ``g``.
        inputs: Inputs per group, ``n``.
        outputs: Outputs per group, ``m``.
        device: Where the sums live.
    """

    def __init__(
        self, groups: int, inputs: int, outputs: int, device: torch.device
    ) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(
                groups, *shape, dtype=torch.float64, device=device
            )

        self.count = 0
        self.x = zeros(inputs)
        self.r = zeros(outputs)
        self.xx = zeros(inputs, inputs)
        self.xr = zeros(inputs, outputs)
        self.rr = zeros(outputs)

    def update(self, x: Tensor, r: Tensor) -> None:
        """Add rows: ``x`` of shape ``(R, g, n)`` and ``r`` of shape ``(R, g, m)``."""
        count = len(x)
        if not count:
            return
        dtype = torch.promote_types(x.dtype, torch.float32)
        x, r = x.to(dtype).transpose(0, 1), r.to(dtype).transpose(0, 1)
        # Rounded first, so that what is taken away is exactly what is put back.
        mean_x, mean_r = x.mean(1, keepdim=True), r.mean(1, keepdim=True)
        x, r = x - mean_x, r - mean_r
        # Next to nothing, so that float32 has room enough for it.
        rest_x, rest_r = x.sum(1).double(), r.sum(1).double()
        mean_x, mean_r = mean_x[:, 0].double(), mean_r[:, 0].double()
        self.count += count
        self.x += rest_x + count * mean_x
        self.r += rest_r + count * mean_r
        self.xx += (x.transpose(1, 2) @ x).double()
        self.xx += _outer(mean_x, rest_x) + _outer(rest_x, mean_x)
        self.xx += count * _outer(mean_x, mean_x)
        self.xr += (x.transpose(1, 2) @ r).double()
        self.xr += _outer(mean_x, rest_r) + _outer(rest_x, mean_r)
        self.xr += count * _outer(mean_x, mean_r)
        self.rr += r.double().square().sum(1)
        self.rr += mean_r * (2 * rest_r + count * mean_r)

    def __add__(self, other: Sums) -> Sums:
        """All rows of both."""
        groups, inputs, outputs = self.xr.shape
        total = Sums(groups, inputs, outputs, self.x.device)
        total.count = self.count + other.count
        for name in _PARTS:
            both = getattr(self, name) + getattr(other, name)
            setattr(total, name, both)
        return total

    def reduce(self, total: Total) -> None:
        """Replace every sum by its total over processes."""
        self.count = round(total_number(total, self.count, self.x.device))
        for name in _PARTS:
            setattr(self, name, total(getattr(self, name)))

    def error(self, change: Tensor, shift: Tensor) -> float:
        """Mean over rows of ``‖r − x·change − shift‖²``."""
        explained = 2 * self.xr - self.xx @ change
        total = self.rr.sum() - (change * explained).sum()
        own = torch.einsum("gn,gnm->gm", self.x, change)
        total += (shift * (2 * (own - self.r) + self.count * shift)).sum()
        return max(float(total), 0.0) / max(self.count, 1)


def _outer(first: Tensor, second: Tensor) -> Tensor:
    """Product of each with each, group by group."""
    return first[:, :, None] * second[:, None, :]


@dataclass(frozen=True, eq=False)
class Problem:
    """One layer to be fitted.

    Args:
        fit: Sums over the rows that are fitted.
        held_out: Sums over the rows that judge.
        weight: Present weight, float64 ``(g, n, m)``.
        intercept: Whether the layer has a bias.
    """

    fit: Sums
    held_out: Sums
    weight: Tensor
    intercept: bool


@dataclass(frozen=True, eq=False)
class Solution:
    """What to do with one layer.

    Args:
        change: What is added to the weight, float64 ``(g, n, m)``.
        shift: What is added to the bias, float64 ``(g, m)``.
        ridge: The ridge ρ; infinite if the rescaled average was best.
        before: Error of the rescaled average on held-out rows, relative to the target's variance.
        after: The same of the fitted weight.
    """

    change: Tensor
    shift: Tensor
    ridge: float
    before: float
    after: float


def solve(problem: Problem, ridges: Sequence[float] = RIDGES) -> Solution:
    """Fit one layer.

    Args:
        problem: The sums and the present weight.
        ridges: What to try for ρ; a single one is taken as it is.

    Returns:
        The change; always finite.
    """
    judge = problem.held_out if problem.held_out.count else problem.fit
    rescaled = _Centred(problem.fit, problem).solution(math.inf)
    assert rescaled is not None
    before = judge.error(*rescaled)
    best, best_error = math.inf, before
    if len(ridges) == 1:
        best = ridges[0]
        fitted = _Centred(problem.fit, problem).solution(best)
        best_error = judge.error(*(fitted or rescaled))
    else:
        best, best_error = _best_ridge(problem, judge, ridges, before)
    everything = problem.fit + problem.held_out
    centred = _Centred(everything, problem)
    final = centred.solution(best) or centred.solution(math.inf)
    assert final is not None
    scale = target_variance(everything, problem)
    return Solution(*final, best, before / scale, best_error / scale)


def _best_ridge(
    problem: Problem, judge: Sums, ridges: Sequence[float], before: float
) -> tuple[float, float]:
    """The ridge with the smallest error on the judging rows, and that error."""
    centred = _Centred(problem.fit, problem)
    best, smallest = math.inf, before
    for ridge in ridges:
        found = centred.solution(ridge)
        if found is None:
            continue
        error = judge.error(*found)
        if error < smallest:
            best, smallest = ridge, error
    return best, smallest


def target_variance(sums: Sums, problem: Problem) -> float:
    """Variance of the target, summed over the outputs.

    That of a constant target is rounding error: a tiny part of its square at least, so that one may divide by it.
    """
    count = max(sums.count, 1)
    present = torch.einsum("gn,gnm->gm", sums.x / count, problem.weight)
    level = float((present.square() + (sums.r / count).square()).sum())
    _, target = _variances(sums, problem.weight)
    tiny = torch.finfo(torch.float64).tiny
    return max(float(target.sum()), _CONSTANT * level, tiny)


def _variances(sums: Sums, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Variance of the present outputs and of the targets, ``(g, m)``."""
    count = max(sums.count, 1)
    mean_x, mean_r = sums.x / count, sums.r / count
    cov_x = sums.xx / count - mean_x[:, :, None] * mean_x[:, None, :]
    cov_xr = sums.xr / count - mean_x[:, :, None] * mean_r[:, None, :]
    own = (weight * (cov_x @ weight)).sum(1)
    both = (weight * cov_xr).sum(1)
    rest = sums.rr / count - mean_r.square()
    return own.clamp_min(0), (own + 2 * both + rest).clamp_min(0)


class _Centred:
    """The normal equations of some rows, ready for any ridge."""

    def __init__(self, sums: Sums, problem: Problem) -> None:
        count = max(sums.count, 1)
        self._mean_x = sums.x / count
        self._mean_r = sums.r / count
        self._intercept = problem.intercept
        gram, cross = sums.xx / count, sums.xr / count
        if problem.intercept:
            outer = self._mean_x[:, :, None]
            gram = gram - outer * self._mean_x[:, None, :]
            cross = cross - outer * self._mean_r[:, None, :]
        self._gram, self._cross = gram, cross
        scale = _rescaling(*_variances(sums, problem.weight))
        self._towards = problem.weight * (scale - 1)[:, None, :]

    def solution(self, ridge: float) -> tuple[Tensor, Tensor] | None:
        """Change and shift for one ridge; None where the equations cannot be solved."""
        if math.isinf(ridge):
            return self._with_shift(self._towards)
        trace = self._gram.diagonal(dim1=1, dim2=2).mean(1)
        strength = (ridge * trace)[:, None, None]
        eye = torch.eye(self._gram.shape[1]).to(self._gram)
        if ridge == 0:
            change = torch.linalg.pinv(self._gram, hermitian=True)
            return self._with_shift(change @ self._cross)
        # A group whose inputs never change has nothing to solve: only the ridge is left.
        still = (strength <= torch.finfo(torch.float64).tiny) * eye
        lower, failed = torch.linalg.cholesky_ex(
            self._gram + strength * eye + still
        )
        if bool(failed.any()):
            return None
        wanted = self._cross + strength * self._towards
        change = torch.cholesky_solve(wanted, lower)
        if not bool(change.isfinite().all()):
            return None
        return self._with_shift(change)

    def _with_shift(self, change: Tensor) -> tuple[Tensor, Tensor]:
        if not self._intercept:
            return change, torch.zeros_like(self._mean_r)
        own = torch.einsum("gn,gnm->gm", self._mean_x, change)
        return change, self._mean_r - own


def _rescaling(own: Tensor, target: Tensor) -> Tensor:
    """Factor that gives each output the spread of its target; 1 for a dead one."""
    spread = own.sqrt()
    alive = spread > _DEAD * spread.mean()
    scale = target.sqrt() / torch.where(alive, spread, 1.0)
    return torch.where(alive, scale.clamp_max(_LARGEST_SCALE), 1.0)
