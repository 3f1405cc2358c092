"""Contiguous copies of the blocks, made when first needed.

Permuting along the first axis of a contiguous array is a row gather, several times faster than along any other axis, so
each bilinear term wants its block of the source with the contracted axis first.  The copies cost memory: as a rule one
of the source and one of the reference, for convolutions of two or three taps two of the source.  Axes that are laid out
so already, and convolutions seen from their outputs, are used as they stand.  For very large models the copies are made
anew for every use instead: next to the products they go into, they take little time.  What is gathered from them goes
to a :class:`Scratch`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor

from lightning_rebasin.matching.costs.blocks import Block

#: Gathers of fewer elements than this do not leave the processor's cache, wherever they are written.
_SMALL = 1 << 16


class Layouts:
    """Blocks of one state dict in the working dtype, by axis order.

    Args:
        state: The weights.
        dtype: Working dtype: float32, or float64 if the weights are.
        device: Where the costs are built.
        keep: Whether to keep the copies.
    """

    def __init__(
        self, state: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device, *, keep: bool = True
    ) -> None:
        self._state = state
        self._dtype = dtype
        self._device = device
        #: Whether copies are kept between uses.
        self.keep = keep
        self._kept: dict[tuple[int, tuple[int, ...], bool], Tensor] = {}

    def view(self, block: Block, order: tuple[int, ...]) -> Tensor:
        """``block`` with its axes in ``order``, all but the last merged; copied only if no view can do it."""
        if not self.keep:
            made = self._ordered(block, order)
            return made.reshape(-1, made.shape[-1])
        key = (id(block), order, False)
        if key not in self._kept:
            ordered = self._kept.get((id(block), order, True))
            if ordered is None:
                ordered = self._ordered(block, order)
            merged = ordered.reshape(-1, ordered.shape[-1])
            if merged.data_ptr() != ordered.data_ptr():
                self._kept[id(block), order, True] = merged.view(ordered.shape)
            self._kept[key] = merged
        return self._kept[key]

    def contiguous(self, block: Block, order: tuple[int, ...]) -> Tensor:
        """``block`` with its axes in ``order``, contiguous in memory."""
        if not self.keep:
            return self.copied(block, order)
        key = (id(block), order, True)
        if key not in self._kept:
            self._kept[key] = self.copied(block, order)
        return self._kept[key]

    def standing(self, block: Block) -> Tensor:
        """As :meth:`natural`, kept if making it took a copy."""
        key = (id(block), (), False)
        if key in self._kept:
            return self._kept[key]
        made = self.natural(block)
        if self.keep and made.untyped_storage().data_ptr() != self._state[block.tensor].untyped_storage().data_ptr():
            self._kept[key] = made
        return made

    def natural(self, block: Block) -> Tensor:
        """``block`` as it stands; complex numbers as a last axis of two."""
        taken = block.take(self._state[block.tensor])
        return self._working(torch.view_as_real(taken) if taken.is_complex() else taken)

    def _ordered(self, block: Block, order: tuple[int, ...]) -> Tensor:
        taken = block.take(self._state[block.tensor]).permute(order)
        # The real part of ⟨a, b⟩ is the inner product of real and imaginary parts taken as two numbers.
        return self._working(torch.view_as_real(taken).movedim(-1, -2) if taken.is_complex() else taken)

    def copied(self, block: Block, order: tuple[int, ...]) -> Tensor:
        """As :meth:`contiguous`, but not kept."""
        ordered = self._ordered(block, order)
        # As a matrix: torch transposes two axes blockwise, twice as fast as it copies any others.
        return ordered.reshape(-1, ordered.shape[-1]).contiguous().view(ordered.shape)

    def _working(self, tensor: Tensor) -> Tensor:
        return tensor.to(device=self._device, dtype=self._dtype)


@final
class Scratch:
    """Room for gathered rows that is used again: fresh memory costs a page fault per page, more than the gather.

    Args:
        dtype: Working dtype.
        device: Where the costs are built.
        keep: Whether to keep the room between uses.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device, *, keep: bool) -> None:
        self._empty = torch.empty(0, dtype=dtype, device=device)
        self._keep = keep
        self._rooms: dict[str, Tensor] = {}

    def forget(self) -> None:
        """Free the room; it is made again when needed."""
        self._rooms.clear()

    def gather(self, room: str, tensor: Tensor, axis: int, index: Tensor) -> Tensor:
        """``tensor.index_select(axis, index)``, valid until the next call for the same ``room``."""
        size = (*tensor.shape[:axis], len(index), *tensor.shape[axis + 1 :])
        numel = math.prod(size)
        if numel < _SMALL or not self._keep:
            return tensor.index_select(axis, index)
        if room not in self._rooms or self._rooms[room].numel() < numel:
            self._rooms[room] = self._empty.new_empty(numel)
        out = self._rooms[room][:numel].view(size)
        return torch.index_select(tensor, axis, index, out=out)
