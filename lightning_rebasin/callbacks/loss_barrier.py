"""The barrier between the running model and a reference, measured during training without touching it.

Nothing is fetched, moved or evaluated on the side: the callback waits for the validation that Lightning runs anyway,
and after each validation batch evaluates the same batch once more at points between the model and the reference, with a
copy of the model (:mod:`~lightning_rebasin.landscape.probe`).  Weights, optimizers, random generators, data loaders and
everything the user logs stay bitwise the same.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.signature_utils import (
    is_param_in_hook_signature,
)
from typing_extensions import override

from lightning_rebasin.callbacks.alignment import Aligner
from lightning_rebasin.callbacks.live_page import write_live_page
from lightning_rebasin.callbacks.record import (
    Measurement,
    append_csv,
    log_figures,
)
from lightning_rebasin.callbacks.reference import make_reference
from lightning_rebasin.callbacks.running import Running, begin
from lightning_rebasin.callbacks.schedule import (
    ValidationSchedule,
    positive,
)
from lightning_rebasin.callbacks.strategy import refuse_sharded
from lightning_rebasin.callbacks.trainer import (
    callbacks_of,
    is_dry_run,
    log_value,
)
from lightning_rebasin.errors import (
    BarrierWarning,
    ConfigurationError,
    MissingExtraError,
)
from lightning_rebasin.landscape.barrier import (
    Convention,
    lambda_grid,
)
from lightning_rebasin.landscape.batches import clone_batch
from lightning_rebasin.landscape.copies import isolated_rng
from lightning_rebasin.landscape.lightning_probe import LightningProbe
from lightning_rebasin.landscape.pair import METHODS
from lightning_rebasin.landscape.probe import Place
from lightning_rebasin.landscape.weights import weights_of
from lightning_rebasin.symmetry import PermutationSpec

#: Which curves are measured: to the reference as it is, to the re-matched reference (and how it is matched), or both.
Matching = Literal[
    "none", "weight", "activation", "correlation", "auto", "both"
]
#: How the reference is matched.
_METHODS: dict[Matching, tuple[str, ...]] = {
    "none": (),
    "weight": ("weight",),
    "activation": ("activation",),
    "correlation": ("correlation",),
    "auto": METHODS,
    "both": ("weight",),
}
#: Training batches that are kept to compare activations on, if the user does not say how many.
_BATCHES = 10
#: Lightning passes dataloader_idx to the hooks only when it goes through several loaders one after the other.
_ONE_LOADER = -1


class LossBarrier(Callback):
    """Measure the barrier between the running model and a reference at every validation.

    For every key that ``validation_step`` logs (torchmetrics included) it logs ``barrier/<key>``, its height, and
    ``barrier/<key>/at``, the λ where it is reached; after re-matching ``barrier/<key>/matched`` and
    ``barrier/<key>/matched/at``; further ``barrier/distance``, ``barrier/cosine`` (each also ``…/matched``) and
    ``barrier/moved``, the fraction of units that the matching moves.  With ``matching="auto"`` ``barrier/matching``
    says which matching won (0 weight, 1 activation, 2 correlation), ``barrier/matching/<name>`` how far off each was.
    ``ModelCheckpoint`` and ``EarlyStopping`` can monitor them.  The curves go to ``barrier.csv`` in the log folder, to
    the interactive page ``barrier.html`` beside it, and as a figure to TensorBoard and W&B if these are the loggers.

    λ = 0 is the model *as validation sees it* (under ``WeightAveraging`` the averaged weights), λ = 1 the reference.
    Over several processes the barrier is that of one process: samples that a distributed sampler repeats to make the
    processes even, and which validation itself counts twice, are left out.

    Args:
        reference: The other end: the path of a checkpoint; a folder of snapshots of another run (the one of the same
            step is used); ``"init"``, the weights with which training began; ``"previous"``, the last snapshot of a
            CheckpointSnapshot in the same trainer; or, from Python, a state dict.
        matching: Measure to the reference as it is (``"none"``), to the reference re-matched to the model by weights
            (``"weight"``), or both (``"both"``).  ``"activation"`` and ``"correlation"`` match by how units respond to
            the last training batches, by inner product or correlation; ``"auto"`` tries all three and keeps the one
            whose midpoint is nearest in output to the mean of the two ends.  Weight matching starts from the last
            permutation.
        points: Number of evenly spaced λ, or the λ themselves; 0, ½ and 1 are always added.
        every_n_epochs: Measure only in the validations of every n-th epoch.
        every_n_validations: Measure only in every n-th validation.
        at_steps: Measure only in the first validation at or after each of these optimizer steps.
        metrics: Measure only these logged keys; by default all of them.
        limit_batches: Use only the first so many batches of each validation loader.
        batch_norm_batches: Re-estimate the batch-norm statistics at every λ on the last so many training batches, in
            the copy only; 0 interpolates the statistics like weights.  Activations are compared on the same batches.
            By default 10 where activations are compared, else 0.
        spec: The permutation spec, or its file; by default inferred from the module and its ``example_input_array``,
            or, without one, from the first validation batch through ``forward`` or ``validation_step``.
        convention: What is subtracted from the worst point: the mean of the ends, or the chord between them.
        seed: Seeds the matching.
        prefix: First part of the logged names and of the CSV's name; several LossBarriers need different ones.
        figure: Send a figure of the curves to TensorBoard and W&B.

    Raises:
        ConfigurationError: An option has a value that cannot work.

    Example:
        >>> LossBarrier("init", matching="none", points=5).state_key
        "LossBarrier{'reference': 'init', 'prefix': 'barrier'}"

    References:
        Ainsworth, Hayase, Srinivasa, "Git Re-Basin: Merging Models modulo Permutation Symmetries", ICLR 2023.
    """

    def __init__(
        self,
        reference: str | Path | Mapping[str, Any],
        matching: Matching = "both",
        *,
        points: int | Sequence[float] = 11,
        every_n_epochs: int | None = None,
        every_n_validations: int | None = None,
        at_steps: Sequence[int] | None = None,
        metrics: Sequence[str] | None = None,
        limit_batches: int | None = None,
        batch_norm_batches: int | None = None,
        spec: str | Path | PermutationSpec | None = None,
        convention: Convention = "mean",
        seed: int = 0,
        prefix: str = "barrier",
        figure: bool = True,
    ) -> None:
        super().__init__()
        _check_choices(matching, convention, batch_norm_batches)
        given = "weights" if isinstance(reference, Mapping) else str(reference)
        self._key = {"reference": given, "prefix": prefix}
        self._reference = make_reference(reference)
        self._matching: Matching = matching
        methods = _METHODS[matching]
        self._aligner = Aligner(spec, seed, methods) if methods else None
        self._lambdas = lambda_grid(points)
        self._schedule = ValidationSchedule(
            every_n_epochs, every_n_validations, at_steps
        )
        self._metrics = None if metrics is None else tuple(metrics)
        self._limit = positive("limit_batches", limit_batches)
        self._convention: Convention = convention
        self._prefix = prefix
        self._figure = figure
        if batch_norm_batches is None:
            batch_norm_batches = _BATCHES if self._needs_batches else 0
        self._train_batches: deque[Any] = deque(maxlen=batch_norm_batches)
        self._folder: Path | None = None
        self._running: Running | None = None
        self._begun = False
        self._validation_count = 0
        self._last_step = -1
        self._last_scalars: dict[str, float] = {}
        self.measurements: list[Measurement] = []

    @property
    @override
    def state_key(self) -> str:
        return self._generate_state_key(**self._key)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {
            "validations": self._validation_count,
            "last_step": self._last_step,
            "scalars": dict(self._last_scalars),
            "reference": self._reference.state_dict(),
            "alignment": self._aligner.state_dict() if self._aligner else {},
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._validation_count = int(state_dict["validations"])
        self._last_step = int(state_dict["last_step"])
        self._last_scalars = dict(state_dict["scalars"])
        self._reference.load_state_dict(state_dict["reference"])
        if self._aligner and state_dict["alignment"]:
            self._aligner.load_state_dict(state_dict["alignment"])

    @override
    def setup(
        self, trainer: Trainer, pl_module: LightningModule, stage: str
    ) -> None:
        """Refuse what cannot work before training starts."""
        if stage not in ("fit", "validate"):
            return
        refuse_sharded(trainer, "LossBarrier")
        if stage == "validate" and self._needs_batches:
            raise ConfigurationError(
                f"matching={self._matching!r} compares activations on the last training batches, and there is no "
                "training in trainer.validate: measure during fit(), or choose matching='weight'"
            )
        if stage == "fit" and not trainer.enable_validation:
            raise ConfigurationError(
                "LossBarrier measures on validation batches, but this trainer will run no validation: give fit() a "
                "validation loader, the module a validation_step, and leave limit_val_batches above 0"
            )
        others = [
            c
            for c in callbacks_of(trainer)
            if isinstance(c, LossBarrier) and c is not self
        ]
        if any(other._prefix == self._prefix for other in others):
            raise ConfigurationError(
                f"two LossBarriers log under {self._prefix!r}; give each its own prefix="
            )
        if weights_of(pl_module):
            self._check(trainer, pl_module)

    def _check(self, trainer: Trainer, module: LightningModule) -> None:
        """Everything that can fail because of the module or the reference; configure_model may postpone it."""
        LightningProbe(module, 1)
        if self._needs_batches and is_param_in_hook_signature(
            module.training_step, "dataloader_iter", explicit=True
        ):
            raise ConfigurationError(
                f"matching={self._matching!r} compares activations on training batches, but "
                "training_step(dataloader_iter) consumes them unseen: use training_step(batch, batch_idx), or choose "
                "matching='weight'"
            )
        self._reference.check(trainer, module)
        if self._aligner:
            self._aligner.check(module)

    @override
    def on_fit_start(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> None:
        """Check again what configure_model made, and say which weights are measured."""
        self._check(trainer, pl_module)
        for callback in callbacks_of(trainer):
            if isinstance(callback, WeightAveraging):
                kind = type(callback).__name__
                rank_zero_info(
                    f"LossBarrier measures the weights that validation uses: the averaged ones of {kind}"
                )

    @override
    def on_train_start(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> None:
        """Let the reference see the initial weights."""
        self._find_folder(trainer)
        if not is_dry_run(trainer):
            assert self._folder is not None
            self._reference.start(
                trainer,
                pl_module,
                self._folder / f"{self._file_stem}-init.ckpt",
            )

    @override
    def on_train_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Keep the last training batches: iterating the loader here would move the generators."""
        if self._train_batches.maxlen:
            self._train_batches.append(clone_batch(batch))

    @override
    def on_validation_start(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> None:
        """Count the validations."""
        self._running, self._begun = None, False
        if trainer.sanity_checking or is_dry_run(trainer):
            return
        self._find_folder(trainer)
        if trainer.state.fn == "fit":
            self._validation_count += 1
        else:
            self._check(trainer, pl_module)

    @override
    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Start measuring with the first batch, and keep a copy of each batch before the module can change it."""
        if not self._begun:
            # Not earlier: by now every callback that swaps weights for validation (WeightAveraging, EMA) has done so.
            self._begun = True
            if self._aligner and not is_dry_run(trainer):
                with torch.inference_mode(mode=False), torch.no_grad():
                    self._aligner.look(pl_module, clone_batch(batch))
            if self._due(trainer):
                self._running = self._begin(trainer, pl_module)
        wanted = self._limit is None or batch_idx < self._limit
        if self._running is not None and wanted:
            self._running.hold(batch, batch_idx, dataloader_idx)

    @override
    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = _ONE_LOADER,
    ) -> None:
        """Evaluate the batch at every point."""
        if self._running is None:
            return
        if dataloader_idx == _ONE_LOADER:
            place = Place(batch_idx)
        else:
            loaders = len(trainer.num_val_batches)
            place = Place(batch_idx, dataloader_idx, loaders)
        self._running.evaluate(place)

    @override
    def on_validation_epoch_end(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> None:
        """Log what was measured."""
        running, self._running = self._running, None
        if running is None:
            self._repeat(trainer, pl_module)
            return
        measurement = running.finish()
        if self._metrics is not None:
            measurement = measurement.selected(self._metrics)
        self._publish(trainer, pl_module, measurement)

    @override
    def on_exception(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        exception: BaseException,
    ) -> None:
        """Let go of the copies."""
        self._running = None

    @override
    def teardown(
        self, trainer: Trainer, pl_module: LightningModule, stage: str
    ) -> None:
        """Let go of the copies."""
        self._running = None
        self._train_batches.clear()

    @property
    def _needs_batches(self) -> bool:
        return self._aligner is not None and self._aligner.needs_batches

    @property
    def _file_stem(self) -> str:
        return self._prefix.replace("/", "-")

    def _find_folder(self, trainer: Trainer) -> None:
        # trainer.log_dir is collective, so every process asks for it, whether it writes or not.
        self._folder = Path(trainer.log_dir or trainer.default_root_dir)

    def _due(self, trainer: Trainer) -> bool:
        if trainer.sanity_checking or is_dry_run(trainer):
            return False
        if trainer.state.fn != "fit":
            return True
        return self._schedule.due(
            self._validation_count,
            trainer.current_epoch,
            self._last_step,
            trainer.global_step,
        )

    def _begin(
        self, trainer: Trainer, module: LightningModule
    ) -> Running | None:
        """Start measuring, if there is a reference for this step, and something to match it with."""
        if self._needs_batches and not self._train_batches:
            warnings.warn(
                f"LossBarrier: no training batch was seen before this validation, so matching={self._matching!r} had "
                "nothing to compare and nothing was measured",
                BarrierWarning,
                stacklevel=2,
            )
            return None
        with torch.inference_mode(mode=False), torch.no_grad(), isolated_rng():
            reference = self._reference.weights(trainer)
        if reference is None:
            return None
        return begin(
            trainer,
            module,
            reference,
            self._lambdas,
            aligner=self._aligner,
            naive=self._matching in ("none", "both"),
            batches=list(self._train_batches),
        )

    def _publish(
        self,
        trainer: Trainer,
        module: LightningModule,
        measurement: Measurement,
    ) -> None:
        """Log a measurement and write it down."""
        self.measurements.append(measurement)
        self._last_step = measurement.step
        scalars = measurement.scalars(self._prefix, self._convention)
        self._last_scalars = dict(scalars)
        main = f"{self._prefix}/{measurement.main_metric}"
        shown = {main, f"{main}/matched"}
        for name, value in scalars.items():
            log_value(trainer, module, name, value, prog_bar=name in shown)
        if trainer.is_global_zero:
            self._write(trainer, measurement)

    def _write(self, trainer: Trainer, measurement: Measurement) -> None:
        """Add the curves to the CSV file and its page, and as a picture to the loggers that take one."""
        assert self._folder is not None
        stage = "" if trainer.state.fn == "fit" else "-validate"
        path = self._folder / f"{self._file_stem}{stage}.csv"
        main = measurement.main_metric
        try:
            append_csv(path, measurement)
            better: dict[str, bool] = {}
            for curve in measurement.curves.values():
                better |= curve.higher_is_better
            if main:
                write_live_page(path, self._prefix, better)
            if self._figure and main:
                tag = f"{self._prefix}/curve"
                log_figures(trainer, measurement, tag, main)
        except (OSError, MissingExtraError) as error:
            # Not worth losing a training over.
            warnings.warn(
                f"LossBarrier: {error}", BarrierWarning, stacklevel=2
            )

    def _repeat(self, trainer: Trainer, module: LightningModule) -> None:
        """Keep monitors working in validations without a measurement, in particular the first ones after a resume."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        for name, value in self._last_scalars.items():
            if name not in trainer.callback_metrics:
                log_value(trainer, module, name, value, logger=False)


def _check_choices(
    matching: Matching, convention: str, batch_norm_batches: int | None
) -> None:
    """Raise :class:`ConfigurationError` for an option that is not one of the choices."""
    if matching not in _METHODS:
        known = ", ".join(map(repr, _METHODS))
        raise ConfigurationError(
            f"matching={matching!r}; choose one of {known}"
        )
    if convention not in ("mean", "chord"):
        raise ConfigurationError(
            f"convention={convention!r}; choose 'mean' or 'chord'"
        )
    if batch_norm_batches is None:
        return
    if batch_norm_batches < 0:
        raise ConfigurationError(
            f"batch_norm_batches={batch_norm_batches}: must be 0 or more"
        )
    if not batch_norm_batches and set(_METHODS[matching]) - {"weight"}:
        raise ConfigurationError(
            f"batch_norm_batches=0 keeps no training batch, and matching={matching!r} compares activations on them: "
            "give a number, or leave it out"
        )
