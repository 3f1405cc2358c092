"""Invertible linear maps of units: the kind ``"linear"``.

Two linear maps in a row, ``N·P``, may have any invertible A between them: ``(N A⁻¹)(A P)``.  The values of an attention
head and what reads them are such a pair, queries and keys are another one, and so are the factors of LoRA.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from lightning_rebasin.symmetry.actions.action import register_action
from lightning_rebasin.symmetry.actions.arithmetic import (
    matrix_balance,
    random_rotations,
    skew,
)
from lightning_rebasin.symmetry.actions.matrices import MatrixAction
from lightning_rebasin.symmetry.spec.values import Group

#: Largest ratio of singular values: beyond it float32 weights would lose most of their digits.
LARGEST_CONDITION = 1e6
#: Logarithms of the singular values of random elements.
_SPREAD = 1.0
#: Largest Frobenius norm of the symmetric part of what is learned: a condition of ``exp(9 √2) = 3e5`` at most.
_LEARNED_STRETCH = 9.0


@final
class LinearAction(MatrixAction):
    """Invertible matrices, none of them nearly singular."""

    kind = "linear"
    stretches = True

    def fault(self, matrices: Tensor) -> str:
        """Whether the matrices are finite and well conditioned."""
        if not bool(torch.isfinite(matrices).all()):
            return "an element holds NaN or infinity"
        condition = float(torch.linalg.cond(matrices).max())
        if condition <= LARGEST_CONDITION:
            return ""
        return f"an element is nearly singular: condition {condition:.1e}, at most {LARGEST_CONDITION:.0e} is allowed"

    def contragredient(self, matrices: Tensor) -> Tensor:
        """The inverse, transposed."""
        inverse: Tensor = torch.linalg.inv(matrices)
        return inverse.mT

    def random(self, group: Group, generator: torch.Generator) -> Tensor:
        """Rotation · diagonal · rotation, with singular values between 1/e and e."""
        left, right = (
            random_rotations(group.instances, group.size, generator)
            for _ in range(2)
        )
        uniform = torch.rand(
            group.instances,
            1,
            group.size,
            generator=generator,
            dtype=torch.float64,
        )
        stretched = left * torch.exp(_SPREAD * (2 * uniform - 1))
        return (stretched @ right).reshape(*group.shape, group.size)

    def from_latent(self, group: Group, latent: Tensor) -> Tensor:
        """The matrix exponential, kept well conditioned.

        With S the symmetric part of a latent L, the condition of ``exp L`` is at most ``exp(λ_max(S) − λ_min(S))`` and
        so at most ``exp(√2 ‖S‖)``; the skew part only turns.
        """
        del group
        turning = skew(latent)
        stretching = _shortened(latent - turning, _LEARNED_STRETCH)
        # Turns by more than π in every plane add nothing but rounding.
        most = torch.pi * latent.shape[-1] ** 0.5
        found: Tensor = torch.linalg.matrix_exp(
            stretching + _shortened(turning, most)
        )
        return found

    def balance(self, group: Group, plus: Tensor, minus: Tensor) -> Tensor:
        """The geometric mean, see :func:`~lightning_rebasin.symmetry.actions.arithmetic.matrix_balance`."""
        found = matrix_balance(plus, minus)
        return found.reshape(*group.shape, group.size)


def _shortened(matrices: Tensor, longest: float) -> Tensor:
    """Matrices of at most some Frobenius norm, in their own directions."""
    norm = torch.linalg.matrix_norm(matrices, keepdim=True)
    shortened: Tensor = matrices * (longest / norm.clamp(min=longest))
    return shortened


LINEAR = register_action(LinearAction())
