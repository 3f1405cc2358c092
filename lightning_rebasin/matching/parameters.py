"""The parameters of one model as the objective sees them, prepared once for all the products taken of them.

A small network has hundreds of tensors of a few numbers each, and looking at one through torch takes longer than
multiplying it.  So the small tensors are looked at as NumPy arrays.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_FULL = (torch.float32, torch.float64)
#: Up to this many elements NumPy's shorter calls win.
_SMALL = 1 << 16
#: Norms between which float32 is good enough: the squares of larger numbers overflow, and of smaller ones vanish, long
#: before the norm does.
_LEAST, _MOST = 1e-15, 1e15


@final
class Parameters:
    """The tensors of one model that count in the objective.

    Args:
        state: The weights.
        names: What counts, see :func:`~lightning_rebasin.matching.costs.blocks.objective_tensors`.
    """

    def __init__(
        self, state: Mapping[str, Tensor], names: Iterable[str]
    ) -> None:
        #: The tensors, detached.
        self.tensors = {
            name: t.detach() if (t := state[name]).requires_grad else t
            for name in names
        }
        #: Those of them that are fit for NumPy, float32 as they are.
        self.small = {
            name: tensor.numpy()
            for name, tensor in self.tensors.items()
            if _quick(tensor)
        }
        #: Euclidean norm of each tensor; not finite if any entry is not.
        self.norms = self._norms()

    def wide(self, name: str) -> NDArray[np.float64]:
        """The small tensor ``name`` as a float64 vector."""
        return self.small[name].reshape(-1).astype(np.float64)

    def _norms(self) -> dict[str, float]:
        found = _large_norms(
            {
                name: t
                for name, t in self.tensors.items()
                if name not in self.small
            }
        )
        with np.errstate(over="ignore", invalid="ignore"):
            for name, array in self.small.items():
                vector = array.reshape(-1)
                norm = math.sqrt(np.dot(vector, vector))
                found[name] = (
                    norm
                    if _LEAST < norm < _MOST
                    else float(np.linalg.norm(self.wide(name)))
                )
        return found


def _quick(tensor: Tensor) -> bool:
    """Whether it is small, and fit for NumPy, whose calls are shorter than torch's."""
    return (
        tensor.dtype is torch.float32
        and tensor.is_cpu
        and 0 < tensor.numel() <= _SMALL
    )


def _large_norms(tensors: Mapping[str, Tensor]) -> dict[str, float]:
    """In the precision of the tensors first, all of them fetched from the device at once."""
    if not tensors:
        return {}
    # One at a time on the CPU: all of a large model in a wider precision would be a second model in memory.
    rough = [_rough_norm(t) for t in tensors.values()]
    first = rough[0].device
    norms = torch.stack([norm.to(first) for norm in rough]).tolist()
    return {
        name: norm
        if _LEAST < norm < _MOST
        else float(torch.linalg.vector_norm(_real(t).double()))
        for name, norm, t in zip(tensors, norms, tensors.values(), strict=True)
    }


def _rough_norm(tensor: Tensor) -> Tensor:
    """Norm in the precision of the tensor, at least float32."""
    real = _real(tensor)
    wide = real if real.dtype in _FULL else real.float()
    norm: Tensor = torch.linalg.vector_norm(wide)
    return norm.double()


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor
