"""Rotations of units: the kinds ``"orthogonal"`` and ``"orthogonal_mean"``.

The residual stream of a transformer with RMSNorm, its gains folded into the layers that read them, is used through
``x/‖x‖`` and linear maps only.  So any orthogonal O may act on it: writers become ``O·writer``, readers
``reader·Oᵀ``.  LayerNorm subtracts the mean first and therefore knows the direction 1 = (1, …, 1): there O must keep
it, ``O·1 = 1``, which leaves the rotations of the (d − 1)-dimensional space of mean zero.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from lightning_rebasin.symmetry.actions.action import register_action
from lightning_rebasin.symmetry.actions.arithmetic import (
    cayley,
    mean_free_basis,
    random_rotations,
)
from lightning_rebasin.symmetry.actions.matrices import MatrixAction
from lightning_rebasin.symmetry.spec.values import Group

#: Largest deviation of ``E Eᵀ`` from the identity.
_ROUNDING = 1e-6


class RotationAction(MatrixAction):
    """Orthogonal matrices: their own contragredients."""

    def fault(self, matrices: Tensor) -> str:
        """Whether ``E Eᵀ = I``."""
        eye = torch.eye(matrices.shape[-1], dtype=matrices.dtype)
        deviation = (matrices @ matrices.mT - eye).abs().max()
        if float(deviation) < _ROUNDING:
            return ""
        return f"not orthogonal: E·Eᵀ differs from the identity by {float(deviation):.1e}"

    def contragredient(self, matrices: Tensor) -> Tensor:
        """The matrix itself."""
        return matrices


@final
class OrthogonalAction(RotationAction):
    """All rotations and reflections of the units."""

    kind = "orthogonal"

    def random(self, group: Group, generator: torch.Generator) -> Tensor:
        """Uniform."""
        found = random_rotations(group.instances, group.size, generator)
        return found.reshape(*group.shape, group.size)

    def from_latent(self, group: Group, latent: Tensor) -> Tensor:
        """The Cayley transform of the skew part."""
        return cayley(latent)


@final
class MeanFixingAction(RotationAction):
    """Rotations and reflections that keep the vector (1, …, 1)."""

    kind = "orthogonal_mean"

    def fault(self, matrices: Tensor) -> str:
        """Whether E is orthogonal and ``E·1 = 1``."""
        deviation = (matrices.sum(-1) - 1).abs().max()
        if float(deviation) > _ROUNDING:
            return f"the mean direction is not kept: a row sums to 1 ± {float(deviation):.1e}"
        return super().fault(matrices)

    def random(self, group: Group, generator: torch.Generator) -> Tensor:
        """Uniform on the vectors of mean zero."""
        inner = random_rotations(group.instances, group.size - 1, generator)
        found = with_mean_kept(inner, group.size)
        return found.reshape(*group.shape, group.size)

    def trivial(self, group: Group) -> bool:
        """With one unit there is nothing beside the mean."""
        return group.size < 2

    def latent(self, group: Group) -> Tensor:
        """Zeros over the space of mean zero."""
        return torch.zeros(*group.shape[:-1], group.size - 1, group.size - 1)

    def from_latent(self, group: Group, latent: Tensor) -> Tensor:
        """The Cayley transform on the vectors of mean zero."""
        return with_mean_kept(cayley(latent), group.size)


def with_mean_kept(inner: Tensor, size: int) -> Tensor:
    """``B·inner·Bᵀ + 11ᵀ/size`` with a basis B of the vectors of mean zero.

    Args:
        inner: Rotations ``(…, size − 1, size − 1)``.
        size: Number of units.
    """
    basis = mean_free_basis(size).to(inner)
    return basis @ inner @ basis.T + 1 / size


ORTHOGONAL = register_action(OrthogonalAction())
MEAN_FIXING = register_action(MeanFixingAction())
