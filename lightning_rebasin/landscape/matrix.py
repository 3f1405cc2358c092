"""Barriers between every pair of snapshots of two runs: when does training enter a basin, and is it the same one?"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from tqdm import tqdm

from lightning_rebasin.errors import ConfigurationError, DataError
from lightning_rebasin.files import atomic_write_text
from lightning_rebasin.landscape.barrier import BarrierCurve, Convention
from lightning_rebasin.landscape.measure import measure_barrier
from lightning_rebasin.landscape.probe import LossFunction
from lightning_rebasin.landscape.trajectory import Snapshot, load_trajectory
from lightning_rebasin.landscape.weights import weights_of
from lightning_rebasin.matching import match_weights
from lightning_rebasin.symmetry import PermutationSpec

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMAT = "lightning-rebasin-barrier-matrix"
Trajectory = str | Path | Sequence[Snapshot]


@dataclass(frozen=True)
class BarrierMatrix:
    """Heights of barriers between the snapshots of two runs.

    Args:
        steps_a: Steps of the rows.
        steps_b: Steps of the columns.
        heights: ``heights[i][j]`` is the barrier between row ``i`` and column ``j``; NaN where it was not measured.
        metric: What was measured.
        convention: How the ends were subtracted.
    """

    steps_a: tuple[int, ...]
    steps_b: tuple[int, ...]
    heights: tuple[tuple[float, ...], ...]
    metric: str
    convention: Convention

    def plot(self, path: str | Path | None = None) -> Figure:
        """Draw a heat map; needs the ``plot`` extra.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        from lightning_rebasin.plotting import plot_matrix

        return plot_matrix(self, path=path)

    def to_csv(self, path: str | Path) -> None:
        """Write one row per snapshot of the first run, atomically.

        Raises:
            OutputError: The folder cannot be written.
        """
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["step", *self.steps_b])
        writer.writerows(
            [step, *row]
            for step, row in zip(self.steps_a, self.heights, strict=True)
        )
        atomic_write_text(path, text.getvalue())

    def to_json(self, path: str | Path) -> None:
        """Write everything as JSON, atomically.

        Raises:
            OutputError: The folder cannot be written.
        """
        data = {"format": FORMAT, **vars(self)}
        atomic_write_text(path, json.dumps(data, indent=1) + "\n")


def barrier_matrix(
    module: nn.Module,
    a: Trajectory,
    b: Trajectory,
    dataloader: Iterable[Any],
    *,
    spec: PermutationSpec | None = None,
    points: int | Sequence[float] = 11,
    metric: str | None = None,
    loss: LossFunction | None = None,
    same_step: bool = False,
    convention: Convention = "mean",
    batch_norm: Iterable[Any] | None = None,
    seed: int = 0,
    progress: bool = False,
) -> BarrierMatrix:
    """Measure the barrier between every snapshot of one run and every snapshot of another.

    With ``same_step=True`` only pairs of equal step are measured: the barrier over training as Git Re-Basin shows it.

    Args:
        module: The network of both runs, as for :func:`~lightning_rebasin.measure_barrier`.
        a: Folder of snapshots, or the snapshots.
        b: The same for the other run; the same folder gives the barriers of a run with itself.
        dataloader: Batches to measure on.
        spec: With a spec, every snapshot of ``b`` is matched to the snapshot of ``a`` first; without one, the barriers
            are naive.
        points: Number of evenly spaced λ, or the λ themselves.
        metric: Which metric; by default the first one whose name contains ``"loss"``.
        loss: Loss of a module that is not a LightningModule.
        same_step: Measure only pairs of equal step; the rest is NaN.
        convention: How the ends are subtracted.
        batch_norm: Training batches on which batch-norm statistics are re-estimated at every λ.
        seed: Seeds the matching.
        progress: Show a progress bar over the pairs.

    Returns:
        The matrix.

    Raises:
        CheckpointError: A folder is not a snapshot folder, or a file is missing.
        StateDictError: A snapshot does not fit the module.
        DataError: A run has no snapshots, or there is nothing to measure.
        ConfigurationError: The metric does not exist.
    """
    rows, columns = _snapshots(a), _snapshots(b)
    pairs = _pairs(rows, columns, same_step=same_step)
    statistics = None if batch_norm is None else list(batch_norm)
    heights = [[float("nan")] * len(columns) for _ in rows]
    row, one = -1, {}
    bar = tqdm(pairs, desc="barrier matrix", disable=not progress, leave=False)
    for i, j in bar:
        if i != row:
            # Pairs come row by row, so that two snapshots are in memory at a time.
            row, one = i, _full(module, rows[i])
            if spec is not None:
                # The same function, in the gauge in which others are brought near to it.
                one = spec.canonicalise(one)
        other = _full(module, columns[j])
        if spec is not None:
            # Each pair afresh: a permutation that suits an early snapshot can be a trap for a late one.
            match = match_weights(spec, one, other, seed=seed)
            other = match.transform.apply(other)
        curve = measure_barrier(
            module,
            one,
            other,
            dataloader,
            points=points,
            loss=loss,
            batch_norm=statistics,
        )
        metric = metric or _main_metric(curve)
        if metric not in curve.values:
            raise ConfigurationError(
                f"metric={metric!r} was not measured; choose one of {', '.join(curve.values)}"
            )
        heights[i][j] = curve.height(metric, convention)
    return BarrierMatrix(
        tuple(snapshot.step for snapshot in rows),
        tuple(snapshot.step for snapshot in columns),
        tuple(map(tuple, heights)),
        str(metric),
        convention,
    )


def _pairs(
    rows: Sequence[Snapshot], columns: Sequence[Snapshot], *, same_step: bool
) -> list[tuple[int, int]]:
    """Which snapshots to compare, by their numbers."""
    found = []
    for i, x in enumerate(rows):
        for j, y in enumerate(columns):
            if not same_step or x.step == y.step:
                found.append((i, j))
    if not found:
        raise DataError("the two runs have no snapshots of equal step")
    return found


def _main_metric(curve: BarrierCurve) -> str:
    """The first loss, or the first metric if there is none."""
    names = list(curve.values)
    return next((name for name in names if "loss" in name), names[0])


def _snapshots(run: Trajectory) -> tuple[Snapshot, ...]:
    snapshots = (
        tuple(load_trajectory(run))
        if isinstance(run, (str, Path))
        else tuple(run)
    )
    if not snapshots:
        raise DataError(f"{run} holds no snapshots")
    return snapshots


def _full(module: nn.Module, snapshot: Snapshot) -> dict[str, Tensor]:
    """The weights of a snapshot in the module's precision: they may have been stored in 16 bits."""
    dtypes = {
        name: tensor.dtype for name, tensor in weights_of(module).items()
    }
    return {
        name: tensor.to(dtypes.get(name, tensor.dtype))
        for name, tensor in snapshot.state_dict().items()
    }
