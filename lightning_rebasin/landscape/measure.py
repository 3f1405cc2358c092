"""The loss at points on a data loader (``measure_points``), and between two sets of weights (``measure_barrier``).

``evaluate_points`` measures points of any kind; everything in this layer that measures goes through it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from lightning_rebasin.errors import DataError
from lightning_rebasin.landscape.barrier import (
    BarrierCurve,
    is_higher_better,
    lambda_grid,
)
from lightning_rebasin.landscape.copies import isolated_rng
from lightning_rebasin.landscape.lightning_probe import make_probe
from lightning_rebasin.landscape.paths.line import Line
from lightning_rebasin.landscape.points import Point, State
from lightning_rebasin.landscape.probe import LossFunction, Place, Probe
from lightning_rebasin.landscape.weights import (
    check_ends,
    weights_of,
    without_compilation_prefix,
)
from lightning_rebasin.merging.interpolate import check_alike

#: Batches, or several loaders, which Lightning tells apart.
Loaders = Iterable[Any] | Sequence[Iterable[Any]]


class Measured(NamedTuple):
    """Metrics of every point by name, what they say about which way is better, and the number of samples."""

    rows: list[dict[str, float]]
    higher_is_better: dict[str, bool]
    samples: int

    def columns(self) -> dict[str, tuple[float, ...]]:
        """For each metric one value per point; NaN where a point lacks it."""
        names = dict.fromkeys(name for row in self.rows for name in row)
        found = {}
        for name in names:
            found[name] = tuple(row.get(name, math.nan) for row in self.rows)
        return found

    def better(self) -> dict[str, bool]:
        """For each metric whether larger is better, guessed from the name where it does not say."""
        found = {}
        for name in dict.fromkeys(name for row in self.rows for name in row):
            known = self.higher_is_better.get(name)
            found[name] = is_higher_better(name) if known is None else known
        return found


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
    line = Line(a, b)
    measured = evaluate_points(
        module,
        [line.at(lam) for lam in lambdas],
        dataloader,
        loss=loss,
        batch_norm=batch_norm,
        limit_batches=limit_batches,
        progress=progress,
    )
    return curve_from_rows(lambdas, *measured)


def evaluate_points(
    module: nn.Module,
    points: Sequence[Point],
    dataloader: Loaders,
    *,
    loss: LossFunction | None = None,
    batch_norm: Iterable[Any] | None = None,
    limit_batches: int | None = None,
    progress: bool = False,
    label: str = "barrier",
) -> Measured:
    """Measure a module's loss and metrics at points of weight space: the body of every measurement.

    Args:
        module: As for :func:`measure_barrier`.
        points: Where to evaluate; their anchors fit the module, on any device.
        dataloader: Batches, or a list of loaders.
        loss: Loss of a module without ``validation_step``.
        batch_norm: Training batches on which batch-norm statistics are re-estimated at every point.
        limit_batches: Use only the first so many batches of each loader.
        progress: Show a progress bar over the batches.
        label: What the bar says.

    Returns:
        The metrics of every point.

    Raises:
        ConfigurationError: A plain module without ``loss``, or a module that cannot be copied.
        StateDictError: The weights do not fit the module.
        DataError: There is no batch, or nothing is logged.

    Example:
        >>> module = nn.Linear(1, 1, bias=False)
        >>> point = Line({"weight": torch.zeros(1, 1)}, {"weight": torch.ones(1, 1)}).at(0.5)
        >>> evaluate_points(module, [point], [torch.ones(2, 1)], loss=lambda m, x: m(x).mean()).rows
        [{'loss': 0.5}]
    """
    return run_probe(
        make_probe(module, len(points), loss),
        points,
        dataloader,
        batch_norm=batch_norm,
        limit_batches=limit_batches,
        progress=progress,
        label=label,
    )


def run_probe(
    probe: Probe,
    points: Sequence[Point],
    dataloader: Loaders,
    *,
    batch_norm: Iterable[Any] | None = None,
    limit_batches: int | None = None,
    progress: bool = False,
    label: str = "barrier",
) -> Measured:
    """:func:`evaluate_points` with a probe of one's own, made for as many points.

    Raises:
        StateDictError: The weights do not fit the module.
        DataError: There is no batch, or nothing is logged.
    """
    loaders = list(dataloader) if _is_several(dataloader) else [dataloader]
    measure_points(
        probe,
        _ready(points, weights_of(probe.module), probe.device),
        loaders,
        batch_norm=batch_norm,
        limit_batches=limit_batches,
        progress=progress,
        label=label,
    )
    rows = probe.results()
    if not any(rows):
        raise DataError(
            "nothing was measured: the data loader gave no batch, or validation_step logs nothing"
        )
    return Measured(rows, probe.higher_is_better(), probe.samples)


def measure_points(
    probe: Probe,
    points: Sequence[Point],
    loaders: Sequence[Iterable[Any]],
    *,
    batch_norm: Iterable[Any] | None = None,
    limit_batches: int | None = None,
    progress: bool = False,
    label: str = "barrier",
) -> None:
    """Evaluate every batch at every point; the results are in the probe.

    Args:
        probe: Made for as many points.
        points: Where to evaluate, with weights on the probe's device.
        loaders: Batches of one or several loaders.
        batch_norm: Training batches on which the batch-norm statistics are re-estimated at every point.
        limit_batches: Use only the first so many batches of each loader.
        progress: Show a progress bar over the batches.
        label: What the bar says.
    """
    # Iterating a loader draws from the global generator; a measurement leaves no trace there.
    with torch.no_grad(), isolated_rng():
        if batch_norm is not None:
            batches = [probe.transfer(batch, 0) for batch in batch_norm]
            probe.estimate_statistics(points, batches)
        for index, loader in enumerate(loaders):
            chosen = islice(loader, limit_batches)
            bar = tqdm(chosen, desc=label, disable=not progress, leave=False)
            for batch_idx, batch in enumerate(bar):
                place = Place(batch_idx, index, len(loaders))
                probe.evaluate(points, probe.transfer(batch, index), place)


def _ready(
    points: Sequence[Point], own: State, device: torch.device
) -> list[Point]:
    """The same points with checked anchors on a device, every tensor moved once.

    Anchors may share tensors: those of layer-wise barriers are made of two models in many arrangements.
    """
    # The originals are kept with their copies: a lazy mapping makes tensors on the fly, and a freed one's id is soon
    # another's.
    moved: dict[int, tuple[Tensor, Tensor]] = {}
    anchors: dict[int, State] = {}
    for anchor in (anchor for point in points for anchor in point.anchors):
        if id(anchor) in anchors:
            continue
        state = dict(anchor)
        check_alike((own, state), ("the module", "a set of weights"))
        here = {}
        for name, tensor in state.items():
            if id(tensor) not in moved:
                moved[id(tensor)] = (tensor, tensor.detach().to(device))
            here[name] = moved[id(tensor)][1]
        anchors[id(anchor)] = here
    found = []
    for point in points:
        chosen = tuple(anchors[id(anchor)] for anchor in point.anchors)
        found.append(Point(chosen, point.coefficients))
    return found


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
