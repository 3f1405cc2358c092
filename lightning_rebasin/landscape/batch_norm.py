"""Batch-norm statistics for weights that never saw a batch.

The running statistics of an interpolated network belong to neither end.  They are re-estimated the way Git Re-Basin and
REPAIR do it: as a cumulative average over training batches, with nothing but the batch norms in training mode.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def tracking_norms(module: nn.Module) -> dict[str, _BatchNorm]:
    """The batch norms of a module that keep running statistics, by name."""
    return {
        name: child
        for name, child in module.named_modules()
        if isinstance(child, _BatchNorm) and child.track_running_stats and child.running_mean is not None
    }


def statistics_of(norms: dict[str, _BatchNorm]) -> dict[str, Tensor]:
    """Copies of the running statistics by the names they have in the state dict."""
    buffers = ((f"{name}.{key}", buffer) for name, norm in norms.items() for key, buffer in norm.named_buffers())
    return {name: buffer.clone() for name, buffer in buffers}


@contextmanager
def cumulative_batch_norm(norms: Iterable[_BatchNorm]) -> Iterator[None]:
    """Reset the statistics and let forward passes inside average into them; only ``norms`` are in training mode."""
    norms = list(norms)
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        # PyTorch averages cumulatively, instead of exponentially, when the momentum is None.
        norm.momentum = None
        norm.train()
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()
