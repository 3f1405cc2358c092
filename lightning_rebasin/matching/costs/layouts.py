"""How the blocks lie in memory, and the room that gathered parts of them go to.

A bilinear term gathers its block along the partner's axis, and multiplies over everything but the group's own axis.  A
weight ``(own, partner, kernel)`` is gathered along its second axis as it stands.  A weight ``(partner, own, kernel)``
is gathered by whole rows; if it has a kernel, its first two axes are exchanged on the way into the room.  So no copy of
a large weight is kept, whichever of its two axes a term belongs to.  Small blocks never leave the processor's cache and
are copied into whatever order makes the fewest calls, as are blocks of any other shape; these copies keep the dtype of
the weights.  For very large models nothing is kept: next to the products that they go into, copies take little time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_rebasin.matching.costs.blocks import Block

#: Blocks of fewer elements than this do not leave the processor's cache, however they are gathered.
SMALL = 1 << 16


class Layouts:
    """Blocks of one state dict, by axis order.

    Args:
        state: The weights.
        dtype: Working dtype: float32, or float64 if the weights are.
        device: Where the costs are built.
        keep: Whether to keep the copies.
        small: Those of the weights that exist as NumPy arrays already.
    """

    def __init__(
        self,
        state: Mapping[str, Tensor],
        dtype: torch.dtype,
        device: torch.device,
        *,
        keep: bool = True,
        small: Mapping[str, NDArray[Any]] | None = None,
    ) -> None:
        self._state = state
        self._small = small or {}
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
        # By identity: blocks are made once per spec, and comparing their index tensors would take longer than the copy.
        key = (id(block), order, False)
        if key not in self._kept:
            ordered = self._kept.get((id(block), order, True))
            if ordered is None:
                ordered = self._ordered(block, order)
            merged = ordered.reshape(-1, ordered.shape[-1])
            # Merging axes had to copy: the copy serves whoever wants these axes contiguous, too.
            if merged.data_ptr() != ordered.data_ptr():
                self._kept[id(block), order, True] = merged.view(ordered.shape)
            self._kept[key] = merged
        return self._kept[key]

    def contiguous(self, block: Block, order: tuple[int, ...]) -> Tensor:
        """``block`` with its axes in ``order``, contiguous in memory."""
        key = (id(block), order, True)
        if key in self._kept:
            return self._kept[key]
        ordered = self._ordered(block, order)
        # As a matrix: torch transposes two axes blockwise, twice as fast as it copies any others.
        made = (
            ordered.reshape(-1, ordered.shape[-1])
            .contiguous()
            .view(ordered.shape)
        )
        if self.keep:
            self._kept[key] = made
        return made

    def standing(self, block: Block) -> Tensor:
        """``block`` as it stands, complex numbers as a last axis of two; kept if making it took a copy."""
        key = (id(block), (), False)
        if key in self._kept:
            return self._kept[key]
        taken = block.take(self._state[block.tensor])
        made = (torch.view_as_real(taken) if taken.is_complex() else taken).to(
            self._device
        )
        if (
            self.keep
            and made.untyped_storage().data_ptr()
            != self._state[block.tensor].untyped_storage().data_ptr()
        ):
            self._kept[key] = made
        return made

    def natural(self, block: Block) -> Tensor:
        """As :meth:`standing`, but in the working dtype, and not kept."""
        taken = block.take(self._state[block.tensor])
        return (torch.view_as_real(taken) if taken.is_complex() else taken).to(
            self._device, self._dtype
        )

    @cached_property
    def real(self) -> bool:
        """Whether no tensor is complex."""
        return not any(tensor.is_complex() for tensor in self._state.values())

    @property
    def on_cpu(self) -> bool:
        """Whether the costs are built on the CPU."""
        return self._device.type == "cpu"

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """The working dtype, for NumPy."""
        return torch.empty(0, dtype=self._dtype).numpy().dtype

    def array(self, block: Block) -> NDArray[Any]:
        """As :meth:`natural`, for NumPy: its calls are shorter than torch's."""
        array = self._small.get(block.tensor)
        if array is not None and block.plain and array.dtype == self.dtype:
            return array.reshape(block.lengths)
        return self.natural(block).numpy()

    def _ordered(self, block: Block, order: tuple[int, ...]) -> Tensor:
        taken = block.take(self._state[block.tensor]).permute(order)
        # The real part of ⟨a, b⟩ is the inner product of real and imaginary parts taken as two numbers.
        return (
            torch.view_as_real(taken).movedim(-1, -2)
            if taken.is_complex()
            else taken
        ).to(self._device)


@final
class Scratch:
    """Room for gathered rows that is used again: fresh memory costs a page fault per page, more than the gather.

    Args:
        dtype: Working dtype.
        device: Where the costs are built.
        keep: Whether to keep the room between uses.
    """

    def __init__(
        self, dtype: torch.dtype, device: torch.device, *, keep: bool
    ) -> None:
        self._empty = torch.empty(0, dtype=dtype, device=device)
        self._keep = keep
        self._rooms: dict[str, Tensor] = {}

    def forget(self) -> None:
        """Free the room; it is made again when needed."""
        self._rooms.clear()

    def gather(
        self, room: str, tensor: Tensor, axis: int, index: Tensor
    ) -> Tensor:
        """``tensor.index_select(axis, index)`` in the working dtype, valid until the next call for ``room``."""
        out = self._room(
            room, (*tensor.shape[:axis], len(index), *tensor.shape[axis + 1 :])
        )
        if out is None:
            return self.working(room, tensor.index_select(axis, index))
        # Gathering straight into the room is only possible in the room's own precision.
        if tensor.dtype is out.dtype:
            return torch.index_select(tensor, axis, index, out=out)
        return out.copy_(tensor.index_select(axis, index))

    def difference(
        self,
        room: str,
        tensor: Tensor,
        axis: int,
        after: Tensor,
        before: Tensor,
    ) -> Tensor:
        """``after`` gathered less ``before`` gathered, in the working dtype; valid as long."""
        return self.gather(room, tensor, axis, after).sub_(
            self.gather("less", tensor, axis, before)
        )

    def swapped(self, room: str, tensor: Tensor) -> Tensor:
        """``tensor`` in the working dtype, its first two axes exchanged in memory; valid as long."""
        turned = tensor.transpose(0, 1)
        out = self._room(room, tuple(turned.shape))
        if out is None:
            return turned.contiguous().to(self._empty.dtype)
        return out.copy_(turned)

    def working(self, room: str, tensor: Tensor) -> Tensor:
        """``tensor`` in the working dtype, itself if it is so already; valid as long."""
        if tensor.dtype is self._empty.dtype:
            return tensor
        out = self._room(room, tuple(tensor.shape))
        return (
            tensor.to(self._empty.dtype) if out is None else out.copy_(tensor)
        )

    def product(self, room: str, left: Tensor, right: Tensor) -> Tensor:
        """``left @ right``; valid as long."""
        out = self._room(room, (len(left), right.shape[1]))
        return left @ right if out is None else torch.mm(left, right, out=out)

    def _room(self, name: str, size: tuple[int, ...]) -> Tensor | None:
        numel = math.prod(size)
        if numel < SMALL or not self._keep:
            return None
        if name not in self._rooms or self._rooms[name].numel() < numel:
            self._rooms[name] = self._empty.new_empty(numel)
        return self._rooms[name][:numel].view(size)
