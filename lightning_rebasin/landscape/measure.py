"""The loss at points on a data loader (``measure_points``), and between two sets of weights (``measure_barrier``)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from lightning_rebasin.errors import DataError
from lightning_rebasin.landscape.barrier import BarrierCurve, lambda_grid
from lightning_rebasin.landscape.copies import isolated_rng
from lightning_rebasin.landscape.lightning_probe import make_probe
from lightning_rebasin.landscape.paths.line import Line
from lightning_rebasin.landscape.points import Point
from lightning_rebasin.landscape.probe import LossFunction, Place, Probe
from lightning_rebasin.landscape.weights import (
    check_ends,
    without_compilation_prefix,
)


def measure_barrier(
    module: nn.Module,
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    dataloader: Iterable[Any] | Sequence[Iterable[Any]],
    *,
    points: int | Sequence[float] = 25,
    loss: LossFunction | None = None,
    batch_norm: Iterable[Any] | None = None,
    limit_batches: int | None = None,
    progress: bool = False,
) -> BarrierCurve:
    """Measure a module's loss and metrics on the segment ``(1 − λ)·a + λ·b``.

    The module is copied, put in eval mode and run in its own dtype on its own device; averages are weighted by batch
    size and accumulated in float64.  Each batch is loaded once and evaluated at every λ.

    Args:
        module: A LightningModule, whose ``validation_step`` then says what is measured (every key it logs, torchmetrics
            with state included), or any other module together with ``loss``.
        a: Weights at λ = 0: the names and shapes of the module's state dict.
        b: Weights at λ = 1.
        dataloader: Batches, or a list of loaders, which Lightning tells apart by ``/dataloader_idx_N``.
        points: Number of evenly spaced λ, or the λ themselves; 0, ½ and 1 are always added.
        loss: ``loss(module, batch)`` returning the mean loss of the batch, or a dict of such means by name.
        batch_norm: Training batches on which the batch-norm statistics are re-estimated at every λ, in the copy only.
        limit_batches: Use only the first so many batches of each loader.
        progress: Show a progress bar over the batches.

    Returns:
        The curve.

    Raises:
        ConfigurationError: A plain module without ``loss``, a module that cannot be copied, or one that logs nothing.
        StateDictError: The weights do not fit the module.
        DataError: There is no batch.

    Example:
        >>> module = nn.Linear(1, 1, bias=False)
        >>> a, b = {"weight": torch.tensor([[1.0]])}, {"weight": torch.tensor([[-1.0]])}
        >>> def loss(module, x):
        ...     return (module(x) ** 2 - 1).abs().mean()
        >>> curve = measure_barrier(module, a, b, [torch.ones(4, 1)], points=3, loss=loss)
        >>> curve.values["loss"], curve.height("loss")
        ((0.0, 1.0, 0.0), 1.0)

    References:
        Ainsworth, Hayase, Srinivasa, "Git Re-Basin", ICLR 2023, Definition 2.2 (25 evenly spaced λ).
    """
    lambdas = lambda_grid(points)
    a, b = without_compilation_prefix(a), without_compilation_prefix(b)
    check_ends(module, a, b)
    probe = make_probe(module, len(lambdas), loss)
    line = Line(_on_device(a, probe.device), _on_device(b, probe.device))
    loaders = list(dataloader) if _is_several(dataloader) else [dataloader]
    measure_points(
        probe,
        [line.at(lam) for lam in lambdas],
        loaders,
        batch_norm=batch_norm,
        limit_batches=limit_batches,
        progress=progress,
    )
    rows = probe.results()
    if not rows[0]:
        raise DataError(
            "nothing was measured: the data loader gave no batch, or validation_step logs nothing"
        )
    return curve_from_rows(
        lambdas, rows, probe.higher_is_better(), probe.samples
    )


def measure_points(
    probe: Probe,
    points: Sequence[Point],
    loaders: Sequence[Iterable[Any]],
    *,
    batch_norm: Iterable[Any] | None = None,
    limit_batches: int | None = None,
    progress: bool = False,
) -> None:
    """Evaluate every batch at every point; the results are in the probe.

    Args:
        probe: Made for as many points.
        points: Where to evaluate, with weights on the probe's device.
        loaders: Batches of one or several loaders.
        batch_norm: Training batches on which the batch-norm statistics are re-estimated at every point.
        limit_batches: Use only the first so many batches of each loader.
        progress: Show a progress bar over the batches.
    """
    # Iterating a loader draws from the global generator; a measurement leaves no trace there.
    with torch.no_grad(), isolated_rng():
        if batch_norm is not None:
            batches = [probe.transfer(batch, 0) for batch in batch_norm]
            probe.estimate_statistics(points, batches)
        for index, loader in enumerate(loaders):
            chosen = islice(loader, limit_batches)
            bar = tqdm(
                chosen, desc="barrier", disable=not progress, leave=False
            )
            for batch_idx, batch in enumerate(bar):
                place = Place(batch_idx, index, len(loaders))
                probe.evaluate(points, probe.transfer(batch, index), place)


def _on_device(
    state: Mapping[str, Tensor], device: torch.device
) -> dict[str, Tensor]:
    return {name: tensor.detach().to(device) for name, tensor in state.items()}


def curve_from_rows(
    lambdas: Sequence[float],
    rows: Sequence[Mapping[str, float]],
    higher_is_better: Mapping[str, bool],
    samples: int,
) -> BarrierCurve:
    """A curve from one dict of metrics per λ; a metric that is missing at a point is NaN there."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    values = {
        name: tuple(row.get(name, math.nan) for row in rows) for name in names
    }
    return BarrierCurve(
        tuple(lambdas),
        values,
        {n: higher_is_better[n] for n in names if n in higher_is_better},
        samples,
    )


def _is_several(dataloader: object) -> bool:
    """Whether this is a list of loaders, and not one loader (a list of batches is one, too)."""
    return isinstance(dataloader, (list, tuple)) and all(
        isinstance(item, DataLoader) for item in dataloader
    )
