"""The demo: two trainings, a barrier watched live, a match, a merged checkpoint and a report.

Each step uses the public functions of the package exactly as a user would; this file only strings them together.
"""

from __future__ import annotations

import json
import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger

from lightning_rebasin.callbacks import CheckpointSnapshot, LossBarrier
from lightning_rebasin.checkpoints import read_checkpoint, write_checkpoint
from lightning_rebasin.demo.data import (
    Classification,
    digits,
    idx_folder,
    loader,
)
from lightning_rebasin.demo.model import Classifier
from lightning_rebasin.errors import ConfigurationError, OutputError
from lightning_rebasin.files import atomic_write_text
from lightning_rebasin.landscape import BarrierCurve, measure_barrier
from lightning_rebasin.matching import MatchResult, match_weights
from lightning_rebasin.merging import interpolate
from lightning_rebasin.plotting import plot_barriers
from lightning_rebasin.symmetry import check_equivalence, infer_spec

# The second training uses the next seed, and numpy takes seeds below 2^32.
_LARGEST_SEED = 2**32 - 2
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
                raise ConfigurationError(
                    f"--{name} must be at least 1, got {value}"
                )
        if self.seed < 0:
            raise ConfigurationError(
                f"--seed must not be negative, got {self.seed}"
            )
        if self.seed > _LARGEST_SEED:
            raise ConfigurationError(
                f"--seed must be at most {_LARGEST_SEED}, got {self.seed}"
            )


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
        barriers = {
            "naive midpoint": self.naive_barrier,
            "merged midpoint": self.matched_barrier,
        }
        for row in self.rows:
            barrier = (
                f"{barriers[row.name]:>10.4f}" if row.name in barriers else ""
            )
            lines.append(
                f"{row.name:<24}{row.loss:>10.4f}{row.accuracy:>10.2%}{barrier}"
            )
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
    with _quiet():
        return _run(settings, progress=progress)


def _run(settings: DemoSettings, *, progress: bool) -> DemoReport:
    data = (
        digits()
        if settings.data_dir is None
        else idx_folder(settings.data_dir)
    )
    _make_folder(settings.output)
    seconds: dict[str, float] = {}
    first, second = (
        settings.output / "first.ckpt",
        settings.output / "second.ckpt",
    )
    with _timed(seconds, "first training"):
        _train(settings, data, settings.seed, first, [], progress=progress)
    with _timed(seconds, "second training with both callbacks"):
        _train(
            settings,
            data,
            settings.seed + 1,
            second,
            _callbacks(settings, first),
            progress=progress,
        )

    model = Classifier.load_from_checkpoint(first)
    reference, source = read_checkpoint(first), read_checkpoint(second)
    spec = infer_spec(model)
    with _timed(seconds, "matching"):
        match = match_weights(
            spec,
            reference.state_dict,
            source.state_dict,
            seed=settings.seed,
            progress=progress,
        )
    error = check_equivalence(model, match.permutation)
    matched = match.permutation.apply(source.state_dict)

    test = loader(data.test, 500)
    with _timed(seconds, "barriers"):
        naive_curve = measure_barrier(
            model,
            reference.state_dict,
            source.state_dict,
            test,
            progress=progress,
        )
        matched_curve = measure_barrier(
            model, reference.state_dict, matched, test, progress=progress
        )
    merged = settings.output / "merged.ckpt"
    write_checkpoint(
        merged,
        interpolate(reference.state_dict, matched, 0.5),
        like=reference,
        force=True,
    )
    _draw(settings.output, naive_curve, matched_curve)

    report = _report(
        settings,
        data,
        match,
        error,
        (naive_curve, matched_curve),
        seconds=seconds,
    )
    atomic_write_text(
        settings.output / "report.json",
        json.dumps(asdict(report), indent=1, default=str) + "\n",
    )
    return report


def evaluate_merged(settings: DemoSettings) -> dict[str, float]:
    """``trainer.test`` of the merged file: it is a normal Lightning checkpoint."""
    data = (
        digits()
        if settings.data_dir is None
        else idx_folder(settings.data_dir)
    )
    path = settings.output / "merged.ckpt"
    with _quiet():
        model = Classifier.load_from_checkpoint(path)
        trainer = _trainer(settings, 1, [], progress=False)
        results = trainer.test(
            model, loader(data.test, 500), ckpt_path=path, verbose=False
        )
    return {name: float(value) for name, value in results[0].items()}


def _callbacks(settings: DemoSettings, reference: Path) -> list[Callback]:
    """Both callbacks as a user attaches them: about ten measurements over the training."""
    every = max(1, _epochs(settings) // 10)
    return [
        LossBarrier(
            reference=reference,
            matching="both",
            every_n_epochs=every,
            metrics=[LOSS],
        ),
        CheckpointSnapshot(
            settings.output / "snapshots", every_n_epochs=every
        ),
    ]


def _epochs(settings: DemoSettings) -> int:
    return settings.epochs or (40 if settings.data_dir is None else 10)


def _train(
    settings: DemoSettings,
    data: Classification,
    seed: int,
    path: Path,
    callbacks: list[Callback],
    *,
    progress: bool,
) -> None:
    """One training of the network, saved as a Lightning checkpoint."""
    seed_everything(seed, verbose=False)
    width = settings.width or (256 if settings.data_dir is None else 512)
    model = Classifier(
        features=data.features, width=width, classes=data.classes
    )
    trainer = _trainer(
        settings,
        _epochs(settings),
        callbacks,
        progress=progress,
        name=path.stem,
    )
    batch_size = 64 if settings.data_dir is None else 500
    trainer.fit(
        model,
        loader(data.train, batch_size, seed=seed),
        loader(data.test, 500),
    )
    trainer.save_checkpoint(path)


def _trainer(
    settings: DemoSettings,
    epochs: int,
    callbacks: list[Callback],
    *,
    progress: bool,
    name: str = "merged",
) -> Trainer:
    """A CPU trainer: the same result for the same seed on any machine of one kind, and no device needed."""
    return Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=epochs,
        logger=CSVLogger(settings.output / "logs", name=name, version=0),
        callbacks=[*callbacks, *([TQDMProgressBar()] if progress else [])],
        enable_progress_bar=progress,
        enable_checkpointing=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=10,
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Lightning's advice about devices and workers would drown the demo's own lines."""
    loggers = [
        logging.getLogger(name)
        for name in ("lightning.pytorch", "lightning.fabric")
    ]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=".*does not have many workers.*"
        )
        warnings.filterwarnings(
            "ignore", message="The number of training batches"
        )
        # Lightning 2.6 still asks torch for a pytree class that torch 2.13 calls deprecated.
        warnings.filterwarnings("ignore", message=".*LeafSpec.*")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


@contextmanager
def _timed(seconds: dict[str, float], step: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[step] = round(time.perf_counter() - start, 3)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"cannot create the output folder {folder}: {error.strerror or error}"
        ) from error


def _draw(folder: Path, naive: BarrierCurve, matched: BarrierCurve) -> None:
    """``barrier.png`` and one ``barrier.csv`` with both curves side by side."""
    curves = {"naive": naive, "after matching": matched}
    plot_barriers(
        curves,
        path=folder / "barrier.png",
        title="From one training to the other",
    )
    lines = [
        f"lam,naive_{LOSS},matched_{LOSS},naive_{ACCURACY},matched_{ACCURACY}"
    ]
    for i, lam in enumerate(naive.lambdas):
        numbers = [
            curve.values[metric][i]
            for metric in (LOSS, ACCURACY)
            for curve in (naive, matched)
        ]
        lines.append(",".join(f"{number:.10g}" for number in (lam, *numbers)))
    atomic_write_text(folder / "barrier.csv", "\n".join(lines) + "\n")


def _report(
    settings: DemoSettings,
    data: Classification,
    match: MatchResult,
    error: float,
    curves: tuple[BarrierCurve, BarrierCurve],
    *,
    seconds: dict[str, float],
) -> DemoReport:
    naive, matched = curves
    middle = naive.lambdas.index(0.5)
    places = [
        ("first (λ = 0)", naive, 0),
        ("second (λ = 1)", naive, -1),
        ("naive midpoint", naive, middle),
        ("merged midpoint", matched, middle),
    ]
    return DemoReport(
        data=data.name,
        settings=asdict(settings),
        rows=tuple(
            Row(name, curve.values[LOSS][i], curve.values[ACCURACY][i])
            for name, curve, i in places
        ),
        naive_barrier=naive.height(LOSS),
        matched_barrier=matched.height(LOSS),
        symmetries=match.permutation.spec.log10_symmetries,
        equivalence_error=error,
        objective=(match.identity_objective, match.objective),
        seconds=dict(seconds),
    )
