"""What kinds have in common whose elements are square matrices that mix the units of an instance.

An element is a float64 tensor ``(*group.shape, size)``: for 24 dimensions inside each of 4 heads, ``(4, 24, 24)``.
Units that are written become ``E u``; units that are read (power −1) become ``E⁻ᵀ u``, so that every product
``⟨read, written⟩`` stays as it was.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from lightning_rebasin.errors import TransformError
from lightning_rebasin.symmetry.actions.action import Action
from lightning_rebasin.symmetry.actions.arithmetic import (
    wide,
    with_precision_of,
)
from lightning_rebasin.symmetry.spec.values import Group


class MatrixAction(Action):
    """Square matrices over the units of each instance."""

    @abstractmethod
    def fault(self, matrices: Tensor) -> str:
        """What is wrong with float64 matrices ``(instances, size, size)``, in words; empty if nothing is."""

    @abstractmethod
    def contragredient(self, matrices: Tensor) -> Tensor:
        """``E⁻ᵀ``: what readers are multiplied with."""

    def identity(self, group: Group) -> Tensor:
        """Unit matrices."""
        eye = torch.eye(group.size, dtype=torch.float64)
        return eye.expand(*group.shape, group.size).contiguous()

    def check(self, group: Group, element: Tensor) -> Tensor:
        """A float64 copy on the CPU.

        Raises:
            TransformError: Not matrices of the kind in the shape ``(*group.shape, size)``.
        """
        shape = (*group.shape, group.size)
        fits = isinstance(element, Tensor) and element.shape == shape
        if not fits or not element.is_floating_point():
            raise TransformError(
                f"group {group.id!r}: an element is a floating-point tensor of the shape {shape}"
            )
        found = element.detach().cpu().double()
        fault = self.fault(found.reshape(-1, group.size, group.size))
        if fault:
            raise TransformError(f"group {group.id!r}: {fault}")
        return found.clone()

    def compose(self, group: Group, after: Tensor, before: Tensor) -> Tensor:
        """The product of the matrices."""
        return after @ before

    def inverse(self, group: Group, element: Tensor) -> Tensor:
        """The transposed contragredient."""
        return self.contragredient(element).mT.contiguous()

    def apply(
        self, group: Group, element: Tensor, units: Tensor, power: int
    ) -> Tensor:
        """``E u`` for what is written, ``E⁻ᵀ u`` for what is read."""
        matrices = element.reshape(group.instances, group.size, group.size)
        matrices = matrices.to(units.device)
        if power < 0:
            matrices = self.contragredient(matrices)
        return with_precision_of(units, matrices @ wide(units, matrices))

    def latent(self, group: Group) -> Tensor:
        """Zeros."""
        return torch.zeros(*group.shape, group.size)

    def distance(self, group: Group, element: Tensor) -> float:
        """``‖E − I‖ / √(2 size)`` in the mean over instances, 1 at most: that of a random rotation is 1."""
        eye = torch.eye(group.size, dtype=element.dtype)
        lengths = torch.linalg.matrix_norm(element - eye)
        relative = lengths / (2 * group.size) ** 0.5
        near = relative < 1e-12
        return float(torch.where(near, 0.0, relative).clamp(max=1).mean())
