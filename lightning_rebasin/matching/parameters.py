"""The parameters of one model as the objective sees them, prepared once for all the products taken of them.

A small network has hundreds of tensors of a few numbers each, and looking at one through torch takes longer than
multiplying it.  So the small tensors are kept as NumPy arrays, and in float64, in which every product is taken.
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
#: Up to this many elements in all the small tensors their float64 copies are kept: eight mebibytes.
_KEPT = 1 << 20


@final
class Parameters:
    """The tensors of one model that count in the objective.

    Args:
        state: The weights.
        names: What counts, see :func:`~lightning_rebasin.matching.costs.blocks.objective_tensors`.
    """

    def __init__(self, state: Mapping[str, Tensor], names: Iterable[str]) -> None:
        #: The tensors, detached.
        self.tensors = {name: state[name].detach() for name in names}
        #: Those of them that are fit for NumPy, float32 as they are.
        self.small = {name: tensor.numpy() for name, tensor in self.tensors.items() if _quick(tensor)}
        self._keep = sum(array.size for array in self.small.values()) <= _KEPT
        self._wide: dict[str, NDArray[np.float64]] = {}
        #: Euclidean norm of each tensor; not finite if any entry is not.
        self.norms = self._norms()

    def wide(self, name: str) -> NDArray[np.float64]:
        """The small tensor ``name`` as a float64 vector."""
        if name in self._wide:
            return self._wide[name]
        made = self.small[name].reshape(-1).astype(np.float64)
        if self._keep:
            self._wide[name] = made
        return made

    def _norms(self) -> dict[str, float]:
        large = _large_norms({name: t for name, t in self.tensors.items() if name not in self.small})
        found = {}
        for name in self.tensors:
            if name in self.small:
                wide = self.wide(name)
                found[name] = math.sqrt(np.dot(wide, wide))
            else:
                found[name] = large[name]
        return found


def _quick(tensor: Tensor) -> bool:
    """Whether it is small, and fit for NumPy, whose calls are shorter than torch's."""
    return tensor.dtype is torch.float32 and tensor.is_cpu and 0 < tensor.numel() <= _SMALL


def _large_norms(tensors: Mapping[str, Tensor]) -> dict[str, float]:
    """In the precision of the tensors first, all of them fetched from the device at once."""
    if not tensors:
        return {}
    real = [torch.view_as_real(t) if t.is_complex() else t for t in tensors.values()]
    wide = [t if t.dtype in _FULL else t.float() for t in real]
    norms = torch.stack([torch.linalg.vector_norm(t).double().cpu() for t in wide]).tolist()
    # The squares of large float32 entries overflow, and of small ones vanish, long before the norm does.
    return {
        name: norm if 1e-15 < norm < 1e15 else float(torch.linalg.vector_norm(t.double()))
        for name, norm, t in zip(tensors, norms, wide, strict=True)
    }
