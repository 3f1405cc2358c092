"""The demo: two trainings, a barrier watched live, a match, a merged checkpoint and a report.

Each step uses the public functions of the package exactly as a user would; this file only strings them together.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger

from lightning_rebasin.callbacks import CheckpointSnapshot, LossBarrier
from lightning_rebasin.checkpoints import read_checkpoint, write_checkpoint
from lightning_rebasin.demo.data import Classification, digits, idx_folder, loader
from lightning_rebasin.demo.model import Classifier
from lightning_rebasin.errors import ConfigurationError, OutputError
from lightning_rebasin.files import atomic_write_text
from lightning_rebasin.landscape import BarrierCurve, measure_barrier
from lightning_rebasin.matching import MatchResult, match_weights
from lightning_rebasin.merging import interpolate
from lightning_rebasin.plotting import plot_barriers
from lightning_rebasin.symmetry import check_equivalence, infer_spec

LOSS, ACCURACY = "val_loss", "val_accuracy"


@dataclass(frozen=True)
class DemoSettings:
    """What the demo runs.

    Args:
        output: Folder for everything it writes.
        data_dir: Folder with MNIST-like idx files; ``None`` takes scikit-learn's digits.
        epochs: Epochs per training; ``None`` means 40 for digits and 10 for idx files.
        width: Units per hidden layer; ``None`` means 256 for digits and 512 for idx files.
        seed: Seed of the first training and of everything else; the second training uses ``seed + 1``.
    """

    output: Path
    data_dir: Path | None = None
    epochs: int | None = None
    width: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "width"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigurationError(f"--{name} must be at least 1, got {value}")
        if self.seed < 0:
            raise ConfigurationError(f"--seed must not be negative, got {self.seed}")


@dataclass(frozen=True)
class Row:
    """One line of the result table."""

    name: str
    loss: float
    accuracy: float


@dataclass(frozen=True)
class DemoReport:
    """Everything the demo measured.

    Args:
        data: Name of the data set.
        rows: Both ends, the naive midpoint and the merged model, on the test split.
        naive_barrier: Test-loss barrier of the straight line, convention ``mean``.
        matched_barrier: The same after matching.
        symmetries: ``log10`` of the number of symmetries of the network.
        equivalence_error: Relative output error of the permuted network in float64.
        objective: Weight-matching objective, before and after.
        seconds: Wall time of each step.
    """

    data: str
    settings: dict[str, Any]
    rows: tuple[Row, ...]
    naive_barrier: float
    matched_barrier: float
    symmetries: float
    equivalence_error: float
    objective: tuple[float, float]
    seconds: dict[str, float]

    def table(self) -> str:
        """The result as text."""
        lines = [f"{'':<24}{'test loss':>10}{'accuracy':>10}{'barrier':>10}"]
        barriers = {"naive midpoint": self.naive_barrier, "merged midpoint": self.matched_barrier}
        for row in self.rows:
            barrier = f"{barriers[row.name]:>10.4f}" if row.name in barriers else ""
            lines.append(f"{row.name:<24}{row.loss:>10.4f}{row.accuracy:>10.2%}{barrier}")
        return "\n".join(lines)


def run_demo(settings: DemoSettings, *, progress: bool = True) -> DemoReport:
    """Train twice, match, merge and measure; write ``merged.ckpt``, ``barrier.png``, ``barrier.csv``, ``report.json``.

    Args:
        settings: What to run.
        progress: Show progress bars.

    Returns:
        The numbers of the report.

    Raises:
        OutputError: The output folder cannot be written.
        DataError: The idx files are missing or malformed.
    """
    data = digits() if settings.data_dir is None else idx_folder(settings.data_dir)
    _make_folder(settings.output)
    seconds: dict[str, float] = {}
    first, second = settings.output / "first.ckpt", settings.output / "second.ckpt"
    with _timed(seconds, "first training"):
        _train(settings, data, settings.seed, first, [], progress)
    with _timed(seconds, "second training with both callbacks"):
        _train(settings, data, settings.seed + 1, second, _callbacks(settings, first), progress)

    model = Classifier.load_from_checkpoint(first)
    reference, source = read_checkpoint(first), read_checkpoint(second)
    spec = infer_spec(model)
    with _timed(seconds, "matching"):
        match = match_weights(
            spec, reference.state_dict, source.state_dict, seed=settings.seed, progress=progress
        )
    error = check_equivalence(model, match.permutation)
    matched = match.permutation.apply(source.state_dict)

    test = loader(data.test, 500)
    with _timed(seconds, "barriers"):
        naive_curve = measure_barrier(model, reference.state_dict, source.state_dict, test, progress=progress)
        matched_curve = measure_barrier(model, reference.state_dict, matched, test, progress=progress)
    merged = settings.output / "merged.ckpt"
    write_checkpoint(merged, interpolate(reference.state_dict, matched, 0.5), like=reference, force=True)
    _draw(settings.output, naive_curve, matched_curve)

    report = _report(settings, data, match, error, (naive_curve, matched_curve), seconds)
    atomic_write_text(settings.output / "report.json", json.dumps(asdict(report), indent=1, default=str) + "\n")
    return report


def evaluate_merged(settings: DemoSettings) -> dict[str, float]:
    """``trainer.test`` of the merged file: it is a normal Lightning checkpoint."""
    data = digits() if settings.data_dir is None else idx_folder(settings.data_dir)
    path = settings.output / "merged.ckpt"
    model = Classifier.load_from_checkpoint(path)
    with _quiet():
        trainer = _trainer(settings, 1, [], progress=False)
        results = trainer.test(model, loader(data.test, 500), ckpt_path=path, verbose=False)
    return {name: float(value) for name, value in results[0].items()}
