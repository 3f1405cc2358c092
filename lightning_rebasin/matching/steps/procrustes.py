"""The steps of kinds that mix units: orthogonal Procrustes problems.

With ``C[i, j] = ⟨A_i, B_j⟩`` an element E gains ``Σ E[i, j] C[i, j]``.  Over all orthogonal E this is largest for
``U Vᵀ``, where ``C = U S Vᵀ``, and its value is the sum of the singular values.  For invertible maps the same holds
once both networks are in canonical gauge (writers and readers balanced): the maps between two balanced pairs that
compute the same function are orthogonal.

Source: Schönemann, "A generalized solution of the orthogonal Procrustes problem", Psychometrika 31, 1966.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from lightning_rebasin.assignment.solve import Solver
from lightning_rebasin.matching.steps.step import Step, register_step
from lightning_rebasin.symmetry.actions.arithmetic import mean_free_basis


def procrustes(costs: Tensor) -> tuple[Tensor, Tensor]:
    """The orthogonal matrices with the largest inner product with some matrices, and these products.

    Args:
        costs: Float64 ``(problems, size, size)``.

    Example:
        >>> best, value = procrustes(torch.tensor([[[0.0, 2.0], [-1.0, 0.0]]], dtype=torch.float64))
        >>> [[round(x, 6) + 0.0 for x in row] for row in best[0].tolist()], round(value.item(), 6)
        ([[0.0, 1.0], [-1.0, 0.0]], 3.0)
    """
    if costs.shape[-1] == 1:
        # A sign; a million decompositions of numbers would take their time.
        return torch.where(costs < 0, -1.0, 1.0).double(), costs.abs().sum(
            (-2, -1)
        )
    u, s, vh = torch.linalg.svd(costs)
    return u @ vh, s.sum(-1)


class _ProcrustesStep(Step):
    """All orthogonal matrices."""

    def best(self, costs: Tensor, solver: Solver) -> tuple[Tensor, Tensor]:
        """One decomposition each."""
        del solver
        return procrustes(costs)


@final
class OrthogonalStep(_ProcrustesStep):
    """The nearest rotation."""

    kind = "orthogonal"


@final
class LinearStep(_ProcrustesStep):
    """The nearest rotation, which is all that is left of invertible maps between balanced pairs."""

    kind = "linear"


@final
class MeanFixingStep(Step):
    """The nearest rotation of the vectors of mean zero; the mean itself stays."""

    kind = "orthogonal_mean"

    def best(self, costs: Tensor, solver: Solver) -> tuple[Tensor, Tensor]:
        """One decomposition each, of one dimension less."""
        del solver
        size = costs.shape[-1]
        basis = mean_free_basis(size)
        inner, values = procrustes(basis.T @ costs @ basis)
        of_mean = costs.sum((-2, -1)) / size
        return basis @ inner @ basis.T + 1 / size, values + of_mean


@final
class PlaneStep(Step):
    """One turn for each pair of units.

    ``E = [[a, −b], [b, a]]`` gains ``a (C₀₀ + C₁₁) + b (C₁₀ − C₀₁)``, which is largest in the direction of these sums.
    """

    kind = "plane"

    def best(self, costs: Tensor, solver: Solver) -> tuple[Tensor, Tensor]:
        """Pair by pair; where nothing decides, the pair stays."""
        del solver
        even = torch.arange(0, costs.shape[-1], 2)
        odd = even + 1
        real = costs[:, even, even] + costs[:, odd, odd]
        imaginary = costs[:, odd, even] - costs[:, even, odd]
        gains = torch.stack([real, imaginary], -1)
        lengths = gains.norm(dim=-1, keepdim=True)
        one = torch.tensor([1.0, 0.0], dtype=costs.dtype)
        turns = torch.where(lengths > 0, gains / lengths, one)
        return turns, lengths.sum((-2, -1))


#: Kinds whose elements mix the units of an instance.
MIXING = frozenset(
    step.kind for step in (OrthogonalStep, LinearStep, MeanFixingStep)
)
ORTHOGONAL = register_step(OrthogonalStep())
LINEAR = register_step(LinearStep())
MEAN_FIXING = register_step(MeanFixingStep())
PLANE = register_step(PlaneStep())
