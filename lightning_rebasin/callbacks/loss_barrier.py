"""The barrier between the running model and a reference, measured during training without touching it.

Nothing is fetched, moved or evaluated on the side: the callback waits for the validation that Lightning runs anyway,
and after each validation batch evaluates the same batch once more at points between the model and the reference, with a
copy of the model (:mod:`~lightning_rebasin.landscape.probe`).  Weights, optimizers, random generators, data loaders and
everything the user logs stay bitwise the same.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from lightning_rebasin.callbacks.alignment import Aligner
from lightning_rebasin.callbacks.averaging import (
    Weights,
    check_weights,
    measured_module,
    name_averaging,
)
from lightning_rebasin.callbacks.checks import (
    check_prefixes,
    check_trainer,
    check_training_step,
)
from lightning_rebasin.callbacks.matching import (
    Matching,
    check_choices,
    has_naive_curve,
    methods_of,
)
from lightning_rebasin.callbacks.publish import Publisher
from lightning_rebasin.callbacks.record import Measurement
from lightning_rebasin.callbacks.reference import make_reference
from lightning_rebasin.callbacks.running import Running, begin
from lightning_rebasin.callbacks.schedule import (
    ValidationSchedule,
    positive,
)
from lightning_rebasin.callbacks.trainer import callbacks_of, is_dry_run
from lightning_rebasin.errors import BarrierWarning
from lightning_rebasin.landscape.barrier import Convention, lambda_grid
from lightning_rebasin.landscape.batches import clone_batch
from lightning_rebasin.landscape.copies import isolated_rng
from lightning_rebasin.landscape.lightning_probe import LightningProbe
from lightning_rebasin.landscape.probe import Place
from lightning_rebasin.landscape.weights import weights_of
from lightning_rebasin.symmetry import PermutationSpec
from lightning_rebasin.symmetry.actions.kinds import PERMUTATION

#: Training batches that are kept to compare activations on, if the user does not say how many.
_BATCHES = 10
#: Lightning passes dataloader_idx to the hooks only when it goes through several loaders one after the other.
_ONE_LOADER = -1


class LossBarrier(Callback):
    """Measure the barrier between the running model and a reference at every validation.

    For every key that ``validation_step`` logs (torchmetrics included) it logs ``barrier/<key>``, its height, and
    ``barrier/<key>/at``, the λ where it is reached; after re-matching ``barrier/<key>/matched`` and
    ``barrier/<key>/matched/at``; further ``barrier/distance``, ``barrier/cosine`` (each also ``…/matched``) and
    ``barrier/moved``, the fraction of units that the matching moves (of rotations and the like how far they turn).
    With ``matching="auto"`` ``barrier/matching`` says which matching won (0 weight, 1 activation, 2 correlation),
    ``barrier/matching/<name>`` how far off each was.  ``ModelCheckpoint`` and ``EarlyStopping`` can monitor them.  The
    curves go to ``barrier.csv`` in the log folder, to the interactive page ``barrier.html`` beside it, and as a figure
    to TensorBoard, W&B and MLflow if these are the loggers.

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
        spec: The spec of the symmetries, or its file; by default inferred from the module and its
            ``example_input_array``, or, without one, from the first validation batch through ``forward`` or
            ``validation_step``.
        kinds: Which kinds of symmetry to match over where the spec is inferred, as in
            :func:`~lightning_rebasin.infer_spec`; with others than permutations (``"all"``) the matched curve begins at
            the model in canonical gauge, a copy that computes the same function.
        convention: What is subtracted from the worst point: the mean of the ends, or the chord between them.
        seed: Seeds the matching.
        prefix: First part of the logged names and of the CSV's name; several LossBarriers need different ones.
        figure: Send a figure of the curves to TensorBoard, W&B and MLflow.
        weights: Under ``WeightAveraging`` measure the averaged weights, which ``"validation"`` sees, or the
            ``"current"`` ones, which the optimizer moves.

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
        kinds: str | Iterable[str] = PERMUTATION,
        convention: Convention = "mean",
        seed: int = 0,
        prefix: str = "barrier",
        figure: bool = True,
        weights: Weights = "validation",
    ) -> None:
        super().__init__()
        check_choices(matching, convention, batch_norm_batches)
        check_weights(weights)
        given = "weights" if isinstance(reference, Mapping) else str(reference)
        self._key = {"reference": given, "prefix": prefix}
        self._reference = make_reference(reference)
        self._matching: Matching = matching
        self._weights: Weights = weights
        methods = methods_of(matching)
        self._aligner = None
        if methods:
            self._aligner = Aligner(spec, seed, methods, kinds)
        self._lambdas = lambda_grid(points)
        self._schedule = ValidationSchedule(
            every_n_epochs, every_n_validations, at_steps
        )
        self._metrics = None if metrics is None else tuple(metrics)
        self._limit = positive("limit_batches", limit_batches)
        self._publisher = Publisher(prefix, convention, figure=figure)
        if batch_norm_batches is None:
            batch_norm_batches = _BATCHES if self._needs_batches else 0
        self._train_batches: deque[Any] = deque(maxlen=batch_norm_batches)
        self._running: Running | None = None
        self._begun = False
        self._validation_count = 0
        self.measurements: list[Measurement] = []

    @property
    @override
    def state_key(self) -> str:
        return self._generate_state_key(**self._key)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {
            "validations": self._validation_count,
            **self._publisher.state_dict(),
            "reference": self._reference.state_dict(),
            "alignment": self._aligner.state_dict() if self._aligner else {},
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._validation_count = int(state_dict["validations"])
        self._publisher.load_state_dict(state_dict)
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
        check_trainer(
            trainer, stage, self._matching, needs_batches=self._needs_batches
        )
        check_prefixes(
            callback._publisher.prefix
            for callback in callbacks_of(trainer)
            if isinstance(callback, LossBarrier)
        )
        if weights_of(pl_module):
            self._check(trainer, pl_module)

    def _check(self, trainer: Trainer, module: LightningModule) -> None:
        """Everything that can fail because of the module or the reference; configure_model may postpone it."""
        LightningProbe(module, 1)
        if self._needs_batches:
            check_training_step(module, self._matching)
        self._reference.check(trainer, module)
        if self._aligner:
            self._aligner.check(module)

    @override
    def on_fit_start(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> None:
        """Check again what configure_model made, and say which weights are measured."""
        self._check(trainer, pl_module)
        name_averaging(trainer, self._weights)

    @override
    def on_train_start(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> None:
        """Let the reference see the initial weights."""
        folder = self._publisher.find_folder(trainer)
        if not is_dry_run(trainer):
            file = folder / f"{self._publisher.file_stem}-init.ckpt"
            self._reference.start(trainer, pl_module, file)

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
        self._publisher.find_folder(trainer)
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
            self._publisher.repeat(trainer, pl_module)
            return
        measurement = running.finish()
        if self._metrics is not None:
            measurement = measurement.selected(self._metrics)
        self.measurements.append(measurement)
        self._publisher.publish(trainer, pl_module, measurement)

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

    def _due(self, trainer: Trainer) -> bool:
        if trainer.sanity_checking or is_dry_run(trainer):
            return False
        if trainer.state.fn != "fit":
            return True
        return self._schedule.due(
            self._validation_count,
            trainer.current_epoch,
            self._publisher.last_step,
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
            measured_module(trainer, module, self._weights),
            reference,
            self._lambdas,
            aligner=self._aligner,
            naive=has_naive_curve(self._matching),
            batches=list(self._train_batches),
        )
