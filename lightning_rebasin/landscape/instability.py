"""``measure_instability``: is a training stable to the noise of SGD, and from which step on?

A training is forked at a step into two children, which go on to the end with different data orders.  If the straight
line between them has no error barrier, the step decided already in which linearly connected region training ends.
Small networks on MNIST are stable from the beginning, ResNets on CIFAR-10 only after a while.

Source: Frankle, Dziugaite, Roy, Carbin, "Linear Mode Connectivity and the Lottery Ticket Hypothesis", ICML 2020.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, final

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from tqdm import tqdm

from lightning_rebasin.checkpoints.inputs import read_inputs
from lightning_rebasin.errors import ConfigurationError, OutputError
from lightning_rebasin.files import atomic_write_text
from lightning_rebasin.landscape.barrier import BarrierCurve
from lightning_rebasin.landscape.forked_runs import ForkedRuns, length_of
from lightning_rebasin.landscape.instability_values import Instability
from lightning_rebasin.landscape.measure import Loaders, measure_barrier
from lightning_rebasin.landscape.weights import weights_of

_SETTINGS = "settings.json"
_CHILDREN = (1, 2)


def measure_instability(
    make: Callable[[], LightningModule],
    train: Iterable[Any],
    held_out: Loaders,
    forks: Sequence[int],
    *,
    max_epochs: int,
    seeds: Sequence[int] = (0,),
    metric: str | None = None,
    threshold: float = 0.02,
    points: int | Sequence[float] = 11,
    batch_norm: Iterable[Any] | None = None,
    folder: str | Path | None = None,
    progress: bool = False,
    **trainer_options: Any,
) -> Instability:
    """Fork trainings at given steps into two children each, and measure the error barrier between these.

    Every seed is one training: ``make()`` gives its network, whose own ``training_step`` and ``configure_optimizers``
    train it; a parent runs up to the last fork, then both children of every fork run to the end with data orders of
    their own.  The instability of a fork is ``max_λ E((1 − λ)·w₁ + λ·w₂) − ½(E(w₁) + E(w₂))`` for the error E.

    Args:
        make: Makes the network with fresh weights, such as its class.
        train: Training batches in random order (``shuffle=True``).
        held_out: Batches that the error is measured on, by the network's ``validation_step``.
        forks: Optimizer steps at which the training is forked; 0 is initialisation.
        max_epochs: Epochs of a whole training.
        seeds: One training each.
        metric: What instability is measured in; the first logged metric for which larger is better if omitted.
        threshold: Below it a fork is stable: 0.02 of accuracy as published.
        points: Number of evenly spaced λ, or the λ themselves.
        batch_norm: Training batches on which batch-norm statistics are re-estimated at every λ.
        folder: Where checkpoints are kept: a second call goes on where the first was interrupted, and more forks and
            seeds can be added.  ``None`` keeps none.
        progress: Show a progress bar over the runs.
        **trainer_options: Further arguments of ``Trainer``, such as ``accelerator`` and ``callbacks``.

    Returns:
        The barriers.

    Raises:
        ConfigurationError: A fork lies outside the training, no metric is known, both children saw the same order, or
            the folder belongs to another training.
        OutputError: The folder cannot be made.

    References:
        Frankle et al., ICML 2020 (arXiv 1912.05671), sections 2 and 3.
    """
    steps = sorted(set(forks))
    if not steps or steps[0] < 0 or not seeds:
        raise ConfigurationError(
            f"forks={list(forks)}, seeds={list(seeds)}: give steps from 0 on, and one seed or more"
        )
    runs = ForkedRuns(make, train, max_epochs, trainer_options)
    place: Any = (
        tempfile.TemporaryDirectory()
        if folder is None
        else nullcontext(folder)
    )
    with place as name:
        study = _Study(runs, Path(name), tuple(steps))
        study.prepare(seeds[0])
        curves: dict[tuple[int, int], BarrierCurve] = {}
        bar = tqdm(
            total=len(seeds) * (1 + 2 * len(steps)),
            desc="trainings",
            disable=not progress,
        )
        with bar:
            for seed in seeds:
                study.train(seed, bar.update)
                for fork in steps:
                    a, b = study.children(seed, fork)
                    curves[seed, fork] = measure_barrier(
                        runs.network(seed),
                        a,
                        b,
                        held_out,
                        points=points,
                        batch_norm=batch_norm,
                    )
        total = study.total
    wanted = metric or _error_metric(next(iter(curves.values())))
    return Instability(
        tuple(steps), tuple(seeds), curves, wanted, total, threshold
    )


@final
class _Study:
    """The runs of all seeds in one folder; those whose files are there are not run again.

    Args:
        runs: How to train.
        folder: Where the files are.
        forks: Steps, ascending.
    """

    def __init__(
        self, runs: ForkedRuns, folder: Path, forks: tuple[int, ...]
    ) -> None:
        self._runs = runs
        self._folder = folder
        self._forks = forks
        self.total = 0

    def prepare(self, seed: int) -> None:
        """Make the folder, or find that it belongs to the same training.

        Raises:
            ConfigurationError: It belongs to another one.
            OutputError: It cannot be made.
        """
        network = type(self._runs.network(seed))
        settings = {
            "network": f"{network.__module__}.{network.__qualname__}",
            "max_epochs": self._runs.max_epochs,
            "batches": length_of(self._runs.train),
        }
        file = self._folder / _SETTINGS
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"cannot make the folder {self._folder}: {error.strerror or error}"
            ) from error
        if not file.exists():
            atomic_write_text(file, json.dumps(settings, indent=1) + "\n")
        found = json.loads(file.read_text(encoding="utf-8"))
        if found != settings:
            raise ConfigurationError(
                f"{self._folder} belongs to another training: {found}, now {settings}; choose another folder"
            )

    def train(self, seed: int, done: Callable[[int], Any]) -> None:
        """All runs of one seed that are missing.

        Args:
            seed: Which training.
            done: Told of every run.
        """
        (self._folder / f"seed-{seed}").mkdir(exist_ok=True)
        starts = {fork: self._start(seed, fork) for fork in self._forks}
        # Initialisation needs no checkpoint: the seed gives it.
        later = {fork: path for fork, path in starts.items() if fork}
        if not all(path.exists() for path in later.values()):
            self._runs.parent(seed, later)
        done(1)
        for fork, start in starts.items():
            for number in _CHILDREN:
                result = self._child(seed, fork, number)
                if not result.exists():
                    self._runs.child(
                        seed, number, start if fork else None, result
                    )
                done(1)

    def children(self, seed: int, fork: int) -> list[Mapping[str, Tensor]]:
        """The weights of both children.

        Raises:
            ConfigurationError: They are the same.
        """
        names = list(weights_of(self._runs.network(seed)))
        files = [self._child(seed, fork, number) for number in _CHILDREN]
        read = read_inputs(files, names)
        self.total = int(read[0].metadata["global_step"])
        if fork >= self.total:
            raise ConfigurationError(
                f"the training has {self.total} steps: it cannot be forked at step {fork}"
            )
        a, b = (checkpoint.state_dict for checkpoint in read)
        if all(torch.equal(a[name], b[name]) for name in names):
            raise ConfigurationError(
                f"both children of step {fork} are the same network: their training data came in the same order. "
                "Give a loader with shuffle=True whose sampler has no seed of its own"
            )
        return [a, b]

    def _start(self, seed: int, fork: int) -> Path:
        return self._folder / f"seed-{seed}" / f"step={fork}.ckpt"

    def _child(self, seed: int, fork: int, number: int) -> Path:
        name = f"step={fork}-child-{number}.ckpt"
        return self._folder / f"seed-{seed}" / name


def _error_metric(curve: BarrierCurve) -> str:
    """The first metric whose complement is an error."""
    for name, better in curve.higher_is_better.items():
        if better:
            return name
    raise ConfigurationError(
        f"validation_step logs no metric for which larger is better, only {', '.join(curve.values)}: name one with "
        "metric="
    )
