"""Weights in which every entry counts alike: what a spec calls important is longer.

If entries count with weights w, the objective is ``Σ w a b = Σ (√w a)(√w b)``: the plain objective of networks whose
entries are multiplied by √w.  Symmetries move units onto units of the same importance, so they commute with this.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_rebasin.symmetry.spec.spec import PermutationSpec


def weighted(
    spec: PermutationSpec, state: Mapping[str, Tensor]
) -> Mapping[str, Tensor]:
    """Weights multiplied by the root of their importance.

    Args:
        spec: Says what is important.
        state: Weights of a network; left alone.

    Returns:
        ``state`` itself if all entries count alike.

    Example:
        >>> from dataclasses import replace
        >>> from lightning_rebasin.symmetry.spec.values import Importance, TensorInfo
        >>> spec = PermutationSpec({}, {"w": TensorInfo((2,), importance=Importance(0, (4.0, 1.0)))}, {})
        >>> weighted(spec, {"w": torch.tensor([3.0, 5.0])})["w"].tolist()
        [6.0, 5.0]
    """
    scaled: dict[str, Tensor] = {}
    for name, info in spec.tensors.items():
        # What is missing is reported by those who look at the state.
        if info.importance is None or name not in state:
            continue
        tensor = state[name].detach()
        if tensor.shape != info.shape:
            continue
        view = [1] * tensor.ndim
        view[info.importance.dim] = -1
        roots = torch.tensor(info.importance.weights, dtype=torch.float64)
        roots = roots.sqrt().reshape(view).to(tensor.device, tensor.dtype)
        scaled[name] = tensor * roots
    return {**state, **scaled} if scaled else state
