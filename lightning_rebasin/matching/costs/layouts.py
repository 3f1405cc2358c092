"""Contiguous copies of the blocks, made when first needed.

Permuting along the first axis of a contiguous array is a row gather, several times faster than along any other axis, so
each bilinear term wants its block of the source with the contracted axis first.  The copies cost memory (at most two of the
source and one of the reference); axes that are laid out so already are used as they are.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_rebasin.matching.costs.blocks import Block


class Layouts:
    """Blocks of one state dict in the working dtype, by axis order.

    Args:
        state: The weights.
        dtype: Working dtype: float32, or float64 if the weights are.
        device: Where the costs are built.
    """

    def __init__(self, state: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device) -> None:
        self._state = state
        self._dtype = dtype
        self._device = device
        self._kept: dict[tuple[int, tuple[int, ...], bool], Tensor] = {}

    def view(self, block: Block, order: tuple[int, ...], split: tuple[int, ...]) -> Tensor:
        """``block`` with its axes in ``order``, reshaped to ``split``; copied only if no view can do it."""
        key = (id(block), order, False)
        if key not in self._kept:
            self._kept[key] = self._working(block).permute(order).reshape(split)
        return self._kept[key]

    def contiguous(self, block: Block, order: tuple[int, ...]) -> Tensor:
        """``block`` with its axes in ``order``, contiguous in memory."""
        key = (id(block), order, True)
        if key not in self._kept:
            self._kept[key] = self._working(block).permute(order).contiguous()
        return self._kept[key]

    def norm(self, name: str) -> float:
        """Euclidean norm of a whole tensor."""
        return float(torch.linalg.vector_norm(self._state[name].detach().to(self._dtype)))

    def _working(self, block: Block) -> Tensor:
        return block.take(self._state[block.tensor].detach()).to(device=self._device, dtype=self._dtype)
