"""The loss between fixed pairs of inputs, followed through training without touching it.

With every validation the straight way between the inputs of each pair is measured once more in a copy of the model
(:func:`~lightning_rebasin.inputs.input_barrier`): how a class becomes connected in input space as the network learns.
Weights, optimizers, random generators and everything the user logs stay bitwise the same.
"""

from __future__ import annotations

import csv
import io
import statistics
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from lightning_rebasin.callbacks.schedule import positive
from lightning_rebasin.callbacks.strategy import refuse_sharded
from lightning_rebasin.callbacks.trainer import (
    callbacks_of,
    is_dry_run,
    log_value,
)
from lightning_rebasin.errors import (
    BarrierWarning,
    ConfigurationError,
    DataError,
    OutputError,
)
from lightning_rebasin.files import atomic_write_text
from lightning_rebasin.inputs.barrier import input_barrier
from lightning_rebasin.inputs.loss import CHUNK_SIZE, OutputLoss
from lightning_rebasin.inputs.pairing import within_classes
from lightning_rebasin.inputs.paths import InputPaths
from lightning_rebasin.landscape.barrier import Convention, lambda_grid
from lightning_rebasin.landscape.other_lightning import refuse_other_lightning

_HEADER = ("step", "epoch", "pair", "maximum", "height")
_NAMES = ("a", "b", "target")


@dataclass(frozen=True, eq=False)
class InputMeasurement:
    """One measurement of an InputBarrier.

    Args:
        step: Optimizer steps taken.
        epoch: The epoch, from 0.
        paths: The straight ways of all pairs.
    """

    step: int
    epoch: int
    paths: InputPaths

    def scalars(self, prefix: str, convention: Convention) -> dict[str, float]:
        """Everything that is logged, by name."""
        maxima, heights = self.paths.maxima, self.paths.heights(convention)
        return {
            f"{prefix}/max": statistics.fmean(maxima),
            f"{prefix}/worst": max(maxima),
            f"{prefix}/height": statistics.fmean(heights),
        }


class InputBarrier(Callback):
    """Measure the barriers between fixed pairs of inputs at every validation.

    It logs the mean over the pairs of the highest loss on the way (``input_barrier/max``) and of the barrier
    (``input_barrier/height``), and the highest loss of all (``input_barrier/worst``).  ``ModelCheckpoint`` and
    ``EarlyStopping`` can monitor them.  Every pair has a row in ``input_barrier.csv`` in the log folder;
    ``measurements`` holds the curves.

    The model is measured *as validation sees it* (under ``WeightAveraging`` the averaged weights), by its ``forward``.
    Over several processes each measures all pairs.

    Args:
        pairs: The number of pairs, which are then made of inputs of one class each in the first validation batch, a
            pair (inputs, classes), and stay the same from then on; or a mapping with ``"a"``, ``"b"`` (inputs of shape
            ``(pairs, *input)``) and ``"target"``; or a file of such a mapping, written by ``torch.save``.
        points: Number of evenly spaced λ; 0, ½ and 1 are always added.
        every_n_epochs: Measure only in the validations of every n-th epoch.
        loss: ``loss(output, target)`` with one number per sample; the cross-entropy if omitted.
        convention: What is subtracted for the height: the mean of the ends, or the chord between them.
        chunk_size: How many inputs go through the network at once.
        prefix: First part of the logged names and of the CSV's name; several callbacks need different ones.

    Raises:
        ConfigurationError: An option has a value that cannot work.
        DataError: The pairs are malformed, or their file cannot be read.

    Example:
        >>> InputBarrier(8, points=5).state_key
        "InputBarrier{'pairs': '8', 'prefix': 'input_barrier'}"

    References:
        Vrabel, Shem-Ur, Oz, Krueger, "Input Space Mode Connectivity in Deep Neural Networks", ICLR 2025.
    """

    def __init__(
        self,
        pairs: int | str | Path | Mapping[str, Tensor] = 16,
        *,
        points: int = 25,
        every_n_epochs: int | None = None,
        loss: OutputLoss | None = None,
        convention: Convention = "mean",
        chunk_size: int = CHUNK_SIZE,
        prefix: str = "input_barrier",
    ) -> None:
        super().__init__()
        lambda_grid(points)
        if convention not in ("mean", "chord"):
            raise ConfigurationError(
                f"convention={convention!r}; choose 'mean' or 'chord'"
            )
        self._count = 0
        self._pairs: dict[str, Tensor] | None = None
        if isinstance(pairs, int):
            self._count = positive("pairs", pairs) or 0
        elif isinstance(pairs, Mapping):
            self._pairs = _checked(pairs)
        else:
            self._pairs = _checked(_read(Path(pairs)))
        given = "tensors" if isinstance(pairs, Mapping) else str(pairs)
        self._key = {"pairs": given, "prefix": prefix}
        self._points = points
        self._epochs = positive("every_n_epochs", every_n_epochs) or 1
        self._loss = loss
        self._convention: Convention = convention
        self._chunk_size = positive("chunk_size", chunk_size) or CHUNK_SIZE
        self._prefix = prefix
        self._folder: Path | None = None
        self._begun = False
        self._fresh: InputMeasurement | None = None
        self._last_scalars: dict[str, float] = {}
        self.measurements: list[InputMeasurement] = []

    @property
    @override
    def state_key(self) -> str:
        return self._generate_state_key(**self._key)

    @override
    def state_dict(self) -> dict[str, Any]:
        # The pairs travel with the run: a resumed one follows the same.
        return {"scalars": dict(self._last_scalars), "pairs": self._pairs}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._last_scalars = dict(state_dict["scalars"])
        if self._count and state_dict["pairs"] is not None:
            self._pairs = dict(state_dict["pairs"])

    @override
    def setup(
        self, trainer: Trainer, pl_module: LightningModule, stage: str
    ) -> None:
        """Refuse what cannot work before training starts."""
        if stage not in ("fit", "validate"):
            return
        refuse_other_lightning(trainer)
        refuse_sharded(trainer, "InputBarrier")
        if stage == "fit" and not trainer.enable_validation:
            raise ConfigurationError(
                "InputBarrier measures at every validation, but this trainer will run none: give fit() a validation "
                "loader, the module a validation_step, and leave limit_val_batches above 0"
            )
        for other in callbacks_of(trainer):
            if not isinstance(other, InputBarrier) or other is self:
                continue
            if other._prefix == self._prefix:
                raise ConfigurationError(
                    f"two InputBarriers log under {self._prefix!r}; give each its own prefix="
                )

    @override
    def on_fit_start(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> None:
        """Measure pairs that are given once, so that what is wrong with them is said before training."""
        if self._pairs is not None:
            self._measure(trainer, pl_module, points=2)

    @override
    def on_validation_start(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> None:
        """Forget the last validation."""
        self._begun, self._fresh = False, None
        # trainer.log_dir is collective, so every process asks for it, whether it writes or not.
        self._folder = Path(trainer.log_dir or trainer.default_root_dir)

    @override
    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Measure before the first batch."""
        if self._begun or trainer.sanity_checking or is_dry_run(trainer):
            return
        # Not earlier: by now every callback that swaps weights for validation (WeightAveraging, EMA) has done so.
        self._begun = True
        if self._pairs is None:
            own = _pairs_of(batch, self._count)
            # Every process sees other batches; all follow the pairs of the first.
            self._pairs = trainer.strategy.broadcast(own)
        due = (trainer.current_epoch + 1) % self._epochs == 0
        if due or trainer.state.fn != "fit":
            paths = self._measure(trainer, pl_module, points=self._points)
            self._fresh = InputMeasurement(
                trainer.global_step, trainer.current_epoch, paths
            )

    @override
    def on_validation_epoch_end(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> None:
        """Log what was measured."""
        fresh, self._fresh = self._fresh, None
        if fresh is None:
            self._repeat(trainer, pl_module)
            return
        self.measurements.append(fresh)
        self._last_scalars = fresh.scalars(self._prefix, self._convention)
        for name, value in self._last_scalars.items():
            log_value(trainer, pl_module, name, value)
        if trainer.is_global_zero:
            self._write(trainer, fresh)

    def _measure(
        self, trainer: Trainer, module: LightningModule, *, points: int
    ) -> InputPaths:
        assert self._pairs is not None
        with trainer.precision_plugin.val_step_context():
            return input_barrier(
                module,
                self._pairs["a"],
                self._pairs["b"],
                self._pairs["target"],
                loss=self._loss,
                points=points,
                chunk_size=self._chunk_size,
            )

    def _repeat(self, trainer: Trainer, module: LightningModule) -> None:
        """Keep monitors working in validations without a measurement."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        for name, value in self._last_scalars.items():
            if name not in trainer.callback_metrics:
                log_value(trainer, module, name, value, logger=False)

    def _write(self, trainer: Trainer, fresh: InputMeasurement) -> None:
        """Add a row per pair to the CSV file."""
        assert self._folder is not None
        stage = "" if trainer.state.fn == "fit" else "-validate"
        stem = self._prefix.replace("/", "-")
        try:
            append_rows(
                self._folder / f"{stem}{stage}.csv", fresh, self._convention
            )
        except OSError as error:
            # Not worth losing a training over.
            warnings.warn(
                f"InputBarrier: {error}", BarrierWarning, stacklevel=2
            )


def append_rows(
    path: Path, measurement: InputMeasurement, convention: Convention
) -> None:
    """Add a row per pair to a CSV file, atomically.

    Rows of the same or a later step are replaced: they were written by a run that was interrupted and resumed before
    that step.

    Raises:
        OutputError: The folder cannot be written, or the file is something else.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    kept: list[list[str]] = []
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            header, *rows = list(csv.reader(file)) or [[]]
        if tuple(header) != _HEADER:
            raise OutputError(
                f"{path} was not written by InputBarrier; move it away"
            )
        kept = [row for row in rows if int(row[0]) < measurement.step]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_HEADER)
    writer.writerows(kept)
    heights = measurement.paths.heights(convention)
    for pair, maximum in enumerate(measurement.paths.maxima):
        when = measurement.step, measurement.epoch
        writer.writerow((*when, pair, repr(maximum), repr(heights[pair])))
    atomic_write_text(path, text.getvalue())


def _pairs_of(batch: Any, count: int) -> dict[str, Tensor]:
    """Pairs within the classes of a batch."""
    usable = isinstance(batch, tuple | list) and len(batch) >= 2
    if not usable or not all(isinstance(x, Tensor) for x in batch[:2]):
        raise DataError(
            f"InputBarrier makes its pairs of a validation batch (inputs, classes), and got a {type(batch).__name__}: "
            "give them as pairs={'a': …, 'b': …, 'target': …}"
        )
    inputs, classes = batch[0], batch[1]
    a, b = within_classes(classes, count)
    # Validation runs in inference mode; tensors made there cannot be kept for later.
    with torch.inference_mode(mode=False):
        return {
            "a": inputs[a].detach().clone().cpu(),
            "b": inputs[b].detach().clone().cpu(),
            "target": classes[a].detach().clone().cpu(),
        }


def _checked(pairs: Any) -> dict[str, Tensor]:
    """A mapping with all three tensors."""
    if not isinstance(pairs, Mapping):
        raise DataError(
            f"pairs must map 'a', 'b' and 'target' to tensors, not be a {type(pairs).__name__}"
        )
    missing = [n for n in _NAMES if not isinstance(pairs.get(n), Tensor)]
    if missing:
        raise DataError(
            f"pairs has no tensor {missing[0]!r}; it needs 'a', 'b' and 'target'"
        )
    return {name: pairs[name].detach().cpu() for name in _NAMES}


def _read(path: Path) -> Any:
    """What a file of pairs holds; nothing in it is executed."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling foreign files may raise anything
        raise DataError(
            f"cannot read pairs from {path}: {type(error).__name__}: {error}"
        ) from error
