"""Batches of any structure: copied, moved, counted, and without what a distributed sampler repeated."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any, cast

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.utilities.data import extract_batch_size
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler

from lightning_rebasin.errors import DataError


def clone_batch(batch: Any) -> Any:
    """A copy of a batch whose tensors and containers may be changed in place."""
    return apply_to_collection(batch, Tensor, torch.clone)


def on_device(batch: Any, device: torch.device) -> Any:
    """A batch with its tensors on a device; those that are there already are not copied."""
    return move_data_to_device(batch, device)


def batch_size(batch: Any) -> int:
    """Number of samples in a batch.

    Raises:
        DataError: It cannot be told.
    """
    try:
        return extract_batch_size(batch)
    except Exception as error:  # Lightning raises its own exception class, tensors of rank 0 an IndexError
        raise DataError(
            f"cannot tell how many samples a batch of type {type(batch).__name__} holds: {error}"
        ) from error


def without_repeats(batch: Any, batch_idx: int, loader: object) -> Any | None:
    """Drop the sample that a distributed sampler repeated, so that no process counts it twice.

    ``DistributedSampler`` appends samples from the beginning until every process has equally many.  With fewer than one
    extra sample per process, it can only be the last one of a process's last batch.

    Args:
        batch: A batch of this process.
        batch_idx: Its index.
        loader: The loader it came from.

    Returns:
        The batch without the repeated sample, ``None`` if nothing else was in it.
    """
    sampler = getattr(loader, "sampler", None)
    if (
        not isinstance(loader, DataLoader)
        or not isinstance(sampler, DistributedSampler)
        or loader.batch_size is None
    ):
        return batch
    samples = len(cast(Sized, sampler.dataset))
    last = sampler.rank + (sampler.num_samples - 1) * sampler.num_replicas
    if sampler.drop_last or last < samples or batch_idx != len(loader) - 1:
        return batch
    size = batch_size(batch)
    return _shortened(batch, size) if size > 1 else None


def _shortened(batch: Any, size: int) -> Any:
    def cut(tensor: Tensor) -> Tensor:
        return tensor[:-1] if tensor.ndim and len(tensor) == size else tensor

    return apply_to_collection(batch, Tensor, cut)
