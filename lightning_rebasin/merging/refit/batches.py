"""Batches that are gone through many times: one part is fitted, another judges.

Of every batch the last eighth of its samples is held out.  A batch that cannot be split (one sample, tensors of
different lengths) is given whole to one part: of such batches every eighth is held out.  Nothing is kept but the
caller's own batches and one number per batch, by which a loader that shuffles is noticed: the targets of a batch are
computed in another pass than the batch's inputs, so that every pass must give the same batches in the same order.

A batch of 16 samples is fitted on 14 and judged on 2.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Literal, final

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

from lightning_rebasin.errors import DataError

Part = Literal["fit", "held out", "all"]

#: Share of the samples that are held out: one of so many.
HELD_OUT = 8


@final
class Batches:
    """One part of a stream of batches that can be gone through again and again.

    Args:
        batches: The caller's batches; an iterator is kept as a list.
        part: Which part.

    Raises:
        DataError: There is no batch.

    Example:
        >>> batches = Batches([torch.arange(16), torch.arange(8)])
        >>> [len(batch) for batch in batches], [len(batch) for batch in batches.part("held out")]
        ([16, 8], [2, 1])
    """

    def __init__(self, batches: Iterable[Any], part: Part = "all") -> None:
        again = iter(batches) is not batches
        self._source = batches if again else list(batches)
        self._part = part
        self._prints: list[float] = []
        #: Samples in all batches together.
        self.samples = 0
        for batch in self._source:
            self._prints.append(fingerprint(batch))
            self.samples += max(batch_size(batch), 1)
        if not self._prints:
            raise DataError("no batches given to fit a merged network on")

    def part(self, part: Part) -> Batches:
        """Another part of the same stream."""
        other = object.__new__(Batches)
        other._source = self._source
        other._prints = self._prints
        other._part = part
        other.samples = sum(max(batch_size(batch), 1) for batch in other)
        return other

    def first(self, samples: int) -> list[Any]:
        """Whole batches from the start on, until there are so many samples."""
        found = []
        seen = 0
        for batch in self:
            if seen >= samples:
                break
            found.append(batch)
            seen += max(batch_size(batch), 1)
        return found

    def __iter__(self) -> Iterator[Any]:
        count = 0
        for k, batch in enumerate(self._source):
            count += 1
            same = k < len(self._prints)
            if not same or fingerprint(batch) != self._prints[k]:
                raise DataError(
                    f"batch {k} of a second pass is not that of the first one: the loader shuffles or augments; "
                    "give one with shuffle=False, or a list of batches"
                )
            yield from _parts(batch, k, self._part)
        if count < len(self._prints):
            raise DataError(
                f"a second pass gave {count} batches instead of {len(self._prints)}; "
                "give a loader that can be gone through again, or a list of batches"
            )

    def example(self) -> Any:
        """A few samples to trace the network with."""
        batch = next(islice(self._source, 1))
        small = _sliced(batch, 0, 4)
        return batch if small is None else small


def _parts(batch: Any, number: int, part: Part) -> Iterator[Any]:
    if part == "all":
        yield batch
        return
    size = batch_size(batch)
    border = size - math.ceil(size / HELD_OUT)
    place = (0, border) if part == "fit" else (border, size)
    piece = _sliced(batch, *place) if border > 0 else None
    if piece is not None:
        yield piece
    elif (number % HELD_OUT == HELD_OUT - 1) == (part == "held out"):
        yield batch


def _sliced(batch: Any, start: int, stop: int) -> Any:
    """Some samples of a batch; None if its tensors do not have one length."""
    size = batch_size(batch)
    tensors = [t for t in tree_flatten(batch)[0] if isinstance(t, Tensor)]
    if size < 2 or any(t.ndim and len(t) != size for t in tensors):
        return None

    def slice_one(leaf: Any) -> Any:
        whole = not isinstance(leaf, Tensor) or not leaf.ndim
        return leaf if whole else leaf[start:stop]

    return tree_map(slice_one, batch)


def batch_size(batch: Any) -> int:
    """Length of the first dimension of the first tensor of a batch; 0 if there is none."""
    for leaf in tree_flatten(batch)[0]:
        if isinstance(leaf, Tensor) and leaf.ndim:
            return len(leaf)
    return 0


def fingerprint(batch: Any) -> float:
    """One number that another batch, or another order, hardly has."""
    total = 0.0
    for leaf in tree_flatten(batch)[0]:
        if isinstance(leaf, Tensor) and leaf.numel():
            flat = leaf.detach().reshape(-1)[:4096].double()
            # Finite, so that the sum is a number and equals itself.
            flat = flat.nan_to_num(0.0, 1.0, -1.0)
            weights = torch.arange(1, len(flat) + 1, dtype=torch.float64)
            total += float((flat * weights.to(flat.device)).sum())
    return total
