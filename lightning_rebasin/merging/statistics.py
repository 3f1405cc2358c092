"""Batch-norm statistics for weights that never saw a batch.

The running mean and variance of a mixed network belong to neither end: averaging them gives the statistics of no
network at all, and a batch-norm network merged that way is near chance.  They are estimated again on training data, as
a cumulative average over distinct batches, with nothing but the batch norms in training mode.
"""

from __future__ import annotations

import copy
import types
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_rebasin.errors import ConfigurationError, DataError
from lightning_rebasin.merging.processes import Total, alone, total_number
from lightning_rebasin.symmetry.run.hollow import hollow_twins

Module = TypeVar("Module", bound=nn.Module)


def reset_batch_norm(
    module: Module, batches: Iterable[Any], *, total: Total = alone
) -> Module:
    """Estimate the running statistics of all batch norms anew, in a copy.

    With ``m_k``, ``v_k`` the mean and unbiased variance of the k-th batch, the new statistics are
    ``(1/K) Σ_k m_k`` and ``(1/K) Σ_k v_k``.  Everything else is in eval mode (no dropout) and unchanged.

    Args:
        module: The network; left exactly as it was.
        batches: Training inputs, ideally a few thousand samples in batches of 100 or more.  A batch is a tensor, a
            tuple or list whose first item is the input, or a dict of keyword arguments of ``forward``.
        total: Sums a tensor over processes, if each of them has its own batches; ``K`` counts those of all.

    Returns:
        A copy in eval mode with the new statistics.  A network without batch norms comes back as a plain copy.

    Raises:
        DataError: ``batches`` is empty.
        ConfigurationError: The module cannot be copied.

    Example:
        >>> net = nn.BatchNorm1d(1)
        >>> new = reset_batch_norm(net, [torch.tensor([[0.0], [2.0]]), torch.tensor([[4.0], [6.0]])])
        >>> new.running_mean.tolist(), new.running_var.tolist(), net.running_mean.tolist()
        ([3.0], [2.0], [0.0])

    References:
        Jordan et al., "REPAIR: REnormalizing Permuted Activations for Interpolation Repair", ICLR 2023, section 4.
    """
    fresh = copied(module)
    norms = batch_norms(fresh)
    if norms:
        with averaging(norms.values()), torch.no_grad():
            count = sum(1 for _ in outputs(fresh, batches))
        if not count:
            raise DataError(
                "no batches given to estimate batch-norm statistics on"
            )
        share_statistics(norms.values(), count, total)
    return fresh


def batch_norms(module: nn.Module) -> dict[str, _BatchNorm]:
    """The batch norms that keep running statistics, by name."""
    return {
        name: child
        for name, child in module.named_modules()
        if isinstance(child, _BatchNorm)
        and child.track_running_stats
        and child.running_mean is not None
    }


def statistics_of(norms: Mapping[str, _BatchNorm]) -> dict[str, Tensor]:
    """Copies of the running statistics by the names they have in the state dict."""
    buffers = (
        (f"{name}.{key}", buffer)
        for name, norm in norms.items()
        for key, buffer in norm.named_buffers()
    )
    return {name: buffer.clone() for name, buffer in buffers}


def copied(module: Module) -> Module:
    """A private deep copy in eval mode.

    Raises:
        ConfigurationError: Something in the module cannot be copied.
    """
    try:
        return copy.deepcopy(module, hollow_twins(module)).eval()
    except (
        Exception
    ) as error:  # whatever the user's own __deepcopy__ or __reduce__ raise
        raise ConfigurationError(
            f"the module {type(module).__name__} cannot be copied: {error}"
        ) from error


@contextmanager
def averaging(norms: Iterable[_BatchNorm]) -> Iterator[None]:
    """Forget the statistics and average those of the forward passes inside; afterwards back to eval mode."""
    norms = list(norms)
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # PyTorch's way to say "cumulative average"
        norm.train()
        if isinstance(norm, nn.SyncBatchNorm) and not _can_synchronise(norm):
            # Of this one norm only; mypy knows methods as parts of their class.
            norm.forward = types.MethodType(_BatchNorm.forward, norm)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()
            norm.__dict__.pop("forward", None)


def share_statistics(
    norms: Iterable[_BatchNorm], count: int, total: Total
) -> None:
    """Statistics that were averaged over ``count`` batches become those over the batches of all processes."""
    for norm in norms:
        mean, variance = norm.running_mean, norm.running_var
        assert mean is not None
        assert variance is not None
        batches = total_number(total, count, mean.device)
        for statistic in (mean, variance):
            statistic.copy_(total(statistic.double() * count) / batches)
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.fill_(round(batches))


def _can_synchronise(norm: nn.SyncBatchNorm) -> bool:
    """Whether it can run in training mode: it refuses to on the CPU and outside a process group."""
    running = (
        torch.distributed.is_available() and torch.distributed.is_initialized()
    )
    return (
        running
        and norm.running_mean is not None
        and not norm.running_mean.is_cpu
    )


def outputs(module: nn.Module, batches: Iterable[Any]) -> Iterator[Any]:
    """Run the module on every batch, on its own device and in its own precision."""
    for batch in batches:
        if isinstance(batch, Mapping):
            yield module(
                **{
                    name: moved_to(module, value)
                    for name, value in batch.items()
                }
            )
        else:
            yield module(
                moved_to(
                    module,
                    batch[0] if isinstance(batch, tuple | list) else batch,
                )
            )


def moved_to(module: nn.Module, value: Any) -> Any:
    """A tensor on the device and, if floating-point, in the precision of the module; anything else as it is."""
    if not isinstance(value, Tensor):
        return value
    like = next(
        (p for p in module.parameters() if p.is_floating_point()),
        torch.empty(0),
    )
    return value.to(
        like.device, like.dtype if value.is_floating_point() else None
    )
