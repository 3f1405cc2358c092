"""Features of the landscape recorded during training: distances, angles, gradients and curvatures, layer by layer.

As with :class:`~lightning_rebasin.LossBarrier` nothing is fetched or moved: the callback waits for the validation that
Lightning runs anyway, and takes derivatives on copies of its first batches, with a copy of the model.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from lightning_rebasin.callbacks.recording import Recording
from lightning_rebasin.callbacks.reference import (
    FixedReference,
    InitialReference,
    make_reference,
)
from lightning_rebasin.callbacks.running import own_copy
from lightning_rebasin.callbacks.schedule import ValidationSchedule
from lightning_rebasin.callbacks.strategy import refuse_sharded
from lightning_rebasin.callbacks.trainer import callbacks_of, is_dry_run
from lightning_rebasin.errors import (
    BarrierWarning,
    ConfigurationError,
    MissingExtraError,
)
from lightning_rebasin.landscape.copies import isolated_rng
from lightning_rebasin.landscape.differentiable import DifferentiableLoss
from lightning_rebasin.landscape.features import (
    FeatureHistory,
    FeatureRow,
    Places,
)
from lightning_rebasin.landscape.layers import layers_of
from lightning_rebasin.landscape.other_lightning import refuse_other_lightning
from lightning_rebasin.landscape.weights import weights_of


class LandscapeFeatures(Callback):
    """Record how a run moves through the landscape, against a reference, whole network and per layer.

    At every validation: distance and cosine to the reference, to the start of the run, and of the reference to its own
    start; the angle between both ways from the fork; on the first validation batches the norm of the gradient, and
    slope and curvature along the chord to the reference (see :class:`~lightning_rebasin.landscape.Features`).  Those
    of the whole network are logged as ``features/<name>``; all of them go to ``features.csv`` in the log folder and,
    at the end of the training, to ``features.json`` and ``features.png``.  Training is bitwise the same as without.

    Derivatives are those of the loss that ``validation_step`` logs, in eval mode, in the precision of the weights (no
    autocast), with running statistics held fixed.  Each batch costs five to ten evaluations, and two more per layer.

    Args:
        reference: As for :class:`~lightning_rebasin.LossBarrier`: a checkpoint, a folder of snapshots of another run
            (the one of the same step is used), ``"init"`` (one run alone), ``"previous"``, or a state dict.
        fork: Where both runs part: a checkpoint or a state dict; the start of this run if omitted.
        every_n_epochs: Record only in the validations of every n-th epoch.
        every_n_validations: Record only in every n-th validation.
        at_steps: Record only in the first validation at or after each of these optimizer steps.
        limit_batches: Take derivatives on so many validation batches of the first loader; 0 takes none.
        metric: The logged loss to differentiate; the first one if omitted.
        layers: Layers by hand; see :func:`~lightning_rebasin.landscape.layers_of` for what a layer is otherwise.
        prefix: First part of the logged names and the files' name; several callbacks need different ones.

    Raises:
        ConfigurationError: An option has a value that cannot work.

    Example:
        >>> LandscapeFeatures("runs/a/snapshots", limit_batches=2).state_key
        "LandscapeFeatures{'reference': 'runs/a/snapshots', 'prefix': 'features'}"

    References:
        Singh et al., "Landscaping Linear Mode Connectivity", 2024 (only the abstract was read).
    """

    def __init__(
        self,
        reference: str | Path | Mapping[str, Any] = "init",
        *,
        fork: str | Path | Mapping[str, Any] | None = None,
        every_n_epochs: int | None = None,
        every_n_validations: int | None = None,
        at_steps: Sequence[int] | None = None,
        limit_batches: int = 4,
        metric: str | None = None,
        layers: Mapping[str, Sequence[str]] | None = None,
        prefix: str = "features",
    ) -> None:
        super().__init__()
        if limit_batches < 0:
            raise ConfigurationError(
                f"limit_batches={limit_batches}: must be 0 or more"
            )
        given = "weights" if isinstance(reference, Mapping) else str(reference)
        self._key = {"reference": given, "prefix": prefix}
        self._reference = make_reference(reference)
        self._start = InitialReference()
        self._fork: FixedReference | None = None
        if fork is not None:
            source = fork if isinstance(fork, Mapping) else Path(fork)
            self._fork = FixedReference(source)
        self._schedule = ValidationSchedule(
            every_n_epochs, every_n_validations, at_steps
        )
        self._limit = limit_batches
        self._metric = metric
        self._by_hand = layers
        self._prefix = prefix
        self._folder: Path | None = None
        self._running: Recording | None = None
        self._begun = False
        self._validation_count = 0
        self._last_step = -1
        self.history = FeatureHistory(())

    @property
    @override
    def state_key(self) -> str:
        return self._generate_state_key(**self._key)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {
            "validations": self._validation_count,
            "last_step": self._last_step,
            "history": self.history.to_dict(),
            "reference": self._reference.state_dict(),
            "start": self._start.state_dict(),
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._validation_count = int(state_dict["validations"])
        self._last_step = int(state_dict["last_step"])
        self.history = FeatureHistory.from_dict(state_dict["history"])
        self._reference.load_state_dict(state_dict["reference"])
        self._start.load_state_dict(state_dict["start"])

    @override
    def setup(
        self, trainer: Trainer, pl_module: LightningModule, stage: str
    ) -> None:
        """Refuse what cannot work before training starts."""
        if stage != "fit":
            return
        refuse_other_lightning(trainer)
        refuse_sharded(trainer, "LandscapeFeatures")
        if not trainer.enable_validation:
            raise ConfigurationError(
                "LandscapeFeatures records during validation, but this trainer will run none: give fit() a validation "
                "loader, the module a validation_step, and leave limit_val_batches above 0"
            )
        for other in callbacks_of(trainer):
            if not isinstance(other, LandscapeFeatures) or other is self:
                continue
            if other._prefix == self._prefix:
                raise ConfigurationError(
                    f"two LandscapeFeatures log under {self._prefix!r}; give each its own prefix="
                )

    @override
    def on_fit_start(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> None:
        """Check the reference, the fork and the layers; by now configure_model has made the weights."""
        if self._limit:
            DifferentiableLoss(pl_module)
        self._reference.check(trainer, pl_module)
        if self._fork is not None:
            self._fork.check(trainer, pl_module)
        layers_of(pl_module, self._by_hand)

    @override
    def on_train_start(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> None:
        """Remember where the run began."""
        # trainer.log_dir is collective, so every process asks for it, whether it writes or not.
        self._folder = Path(trainer.log_dir or trainer.default_root_dir)
        if not is_dry_run(trainer):
            stem = self._folder / self._stem
            for what, name in (
                (self._start, "start"),
                (self._reference, "init"),
            ):
                file = stem.with_name(f"{stem.name}-{name}.ckpt")
                what.start(trainer, pl_module, file)

    @override
    def on_validation_start(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> None:
        """Count the validations."""
        self._running, self._begun = None, False
        if not self._is_idle(trainer):
            self._validation_count += 1

    @override
    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Take derivatives on the batch, before the module can change it."""
        if self._is_idle(trainer):
            return
        if not self._begun:
            # Not earlier: by now every callback that swaps weights for validation (WeightAveraging) has done so.
            self._begun = True
            self._running = self._begin(trainer, pl_module)
        if self._running is None or dataloader_idx > 0:
            return
        if batch_idx < self._limit:
            own = own_copy(trainer, batch, batch_idx, dataloader_idx)
            self._running.update(own)

    @override
    def on_validation_epoch_end(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> None:
        """Log and write what was recorded."""
        running, self._running = self._running, None
        if running is None:
            return
        row = running.finish(trainer)
        self._last_step = row.step
        # A run that was interrupted and resumed comes by again.
        kept = [r for r in self.history.rows if r.step < row.step]
        self.history = FeatureHistory((*kept, row))
        self._log(trainer, pl_module, row)
        if trainer.is_global_zero:
            assert self._folder is not None
            self._folder.mkdir(parents=True, exist_ok=True)
            self._write(self._folder / f"{self._stem}.csv")

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write everything, and a picture if matplotlib is there."""
        if not trainer.is_global_zero or not self.history.rows:
            return
        assert self._folder is not None
        for suffix in ("json", "png"):
            self._write(self._folder / f"{self._stem}.{suffix}")

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

    @property
    def _stem(self) -> str:
        return self._prefix.replace("/", "-")

    @staticmethod
    def _is_idle(trainer: Trainer) -> bool:
        """Whether this is no validation of a training."""
        fitting = trainer.state.fn == "fit" and not trainer.sanity_checking
        return not fitting or is_dry_run(trainer)

    def _begin(
        self, trainer: Trainer, module: LightningModule
    ) -> Recording | None:
        """Start recording, if it is time to and there is a reference for this step."""
        step = trainer.global_step
        epoch = trainer.current_epoch
        if not self._schedule.due(
            self._validation_count, epoch, self._last_step, step
        ):
            return None
        with torch.inference_mode(mode=False), torch.no_grad(), isolated_rng():
            reference = self._reference.weights(trainer)
            start = self._start.weights(trainer)
            if reference is None or start is None:
                return None
            fork = self._fork.weights(trainer) if self._fork else None
            live = weights_of(module)
            places = Places(
                {name: tensor.clone() for name, tensor in live.items()},
                reference,
                start,
                self._reference.initial(),
                fork,
            )
            layers = layers_of(module, self._by_hand)
            loss = None
            if self._limit:
                loss = DifferentiableLoss(module, metric=self._metric)
            return Recording(module, places, layers, loss)

    def _log(
        self, trainer: Trainer, module: LightningModule, row: FeatureRow
    ) -> None:
        """Log the features of the whole network that are known."""
        for name, value in vars(row.whole).items():
            if math.isnan(value):
                continue
            # The values are the same on every process; sync_dist only keeps Lightning from doubting it.
            module.log(
                f"{self._prefix}/{name}",
                value,
                on_epoch=True,
                sync_dist=trainer.world_size > 1,
                add_dataloader_idx=False,
                batch_size=1,
            )

    def _write(self, path: Path) -> None:
        """Write one file; not worth losing a training over."""
        writers: dict[str, Callable[[Path], object]] = {
            ".csv": self.history.to_csv,
            ".json": self.history.to_json,
            ".png": self.history.plot,
        }
        try:
            writers[path.suffix](path)
        except MissingExtraError:
            # The numbers are there, whoever wants the picture installs the extra.
            return
        except OSError as error:
            warnings.warn(
                f"LandscapeFeatures: {error}", BarrierWarning, stacklevel=2
            )
