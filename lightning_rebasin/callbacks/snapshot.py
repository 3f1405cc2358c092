"""Weights-only snapshots of a run at chosen steps: the raw material of every picture over training time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from typing_extensions import override

from lightning_rebasin.callbacks.old_names import renamed
from lightning_rebasin.callbacks.schedule import (
    StepSchedule,
    positive,
    steps_from,
)
from lightning_rebasin.callbacks.strategy import refuse_sharded
from lightning_rebasin.callbacks.trainer import callbacks_of, is_dry_run
from lightning_rebasin.checkpoints import write_checkpoint
from lightning_rebasin.errors import ConfigurationError, OutputError
from lightning_rebasin.landscape.other_lightning import refuse_other_lightning
from lightning_rebasin.landscape.trajectory import (
    INDEX,
    Keep,
    Snapshot,
    read_index,
    surplus,
    write_index,
)
from lightning_rebasin.landscape.weights import weights_of

#: How floating-point numbers are stored.
Precision = Literal["full", "float16", "bfloat16"]
_DTYPES: Mapping[Precision, torch.dtype | None] = {
    "full": None,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


class CheckpointSnapshot(Callback):
    """Save the live weights at chosen steps, without touching training.

    Each snapshot is a small Lightning checkpoint (weights, epoch, step, hyper-parameters, no optimizer) that
    ``load_from_checkpoint`` accepts.  ``index.json`` lists them; :func:`~lightning_rebasin.landscape.load_trajectory`
    reads them back in order.  Several schedules may be combined; without any, there is a snapshot after every epoch.
    The initial weights (step 0) are always saved, except under ``at_steps`` alone.  Only process 0 writes.  Under
    ``WeightAveraging`` the live weights are saved, not the averaged ones.

    A resumed run goes on in the folder of the run it resumes and writes the snapshots after its step anew, so that
    there are neither gaps nor duplicates.

    Args:
        dirpath: Where to write; by default ``snapshots`` in the log folder of the trainer.  It must not hold the
            snapshots of another run.
        at_steps: Save at these optimizer steps (``trainer.global_step``; 0 is before training).
        every_n_train_steps: Save at every multiple of this number of optimizer steps.
        every_n_epochs: Save at the end of every n-th epoch.
        per_decade: Save at logarithmically spaced steps, so many per factor of ten.
        precision: Store floating-point numbers in full, or rounded to 16 bits for half the disk space.
        limit: Keep at most so many snapshots; older ones are deleted.
        keep: Which ones stay under ``limit``: the newest ones, or ones spread over the whole run.
        folder: The old name of ``dirpath``.
        every_n_steps: The old name of ``every_n_train_steps``.

    Raises:
        ConfigurationError: An option has a value that cannot work.

    Example:
        >>> CheckpointSnapshot("runs/a", per_decade=4, precision="float16", limit=40, keep="spread").state_key
        "CheckpointSnapshot{'folder': 'runs/a'}"
    """

    def __init__(
        self,
        dirpath: str | Path | None = None,
        *,
        at_steps: Sequence[int] | None = None,
        every_n_train_steps: int | None = None,
        every_n_epochs: int | None = None,
        per_decade: int | None = None,
        precision: Precision = "full",
        limit: int | None = None,
        keep: Keep = "newest",
        folder: str | Path | None = None,
        every_n_steps: int | None = None,
    ) -> None:
        super().__init__()
        given: str | Path | None = renamed(
            "folder", folder, "dirpath", dirpath
        )
        every_n_train_steps = renamed(
            "every_n_steps",
            every_n_steps,
            "every_n_train_steps",
            every_n_train_steps,
        )
        listed = steps_from("at_steps", at_steps)
        by_step = StepSchedule(
            listed,
            positive("every_n_train_steps", every_n_train_steps),
            positive("per_decade", per_decade),
        )
        nothing_else = (
            not listed and every_n_train_steps is None and per_decade is None
        )
        self._epochs = positive("every_n_epochs", every_n_epochs) or (
            1 if nothing_else else None
        )
        self._schedule = by_step
        if precision not in _DTYPES:
            raise ConfigurationError(
                f"precision={precision!r}; choose one of {', '.join(map(repr, _DTYPES))}"
            )
        if keep not in ("newest", "spread"):
            raise ConfigurationError(
                f"keep={keep!r}; choose 'newest' or 'spread'"
            )
        self._dtype = _DTYPES[precision]
        self._limit = positive("limit", limit)
        self._keep: Keep = keep
        self._given = None if given is None else Path(given)
        self._folder = self._given
        self._last_step = -1

    @property
    def folder(self) -> Path:
        """Where the snapshots are.

        Raises:
            ConfigurationError: The default folder is not known before training starts.
        """
        if self._folder is None:
            raise ConfigurationError(
                "CheckpointSnapshot: the default folder is known only once training has started"
            )
        return self._folder

    @property
    @override
    def state_key(self) -> str:
        return self._generate_state_key(
            folder=str(self._given) if self._given else None
        )

    @override
    def state_dict(self) -> dict[str, Any]:
        return {
            "folder": str(self._folder) if self._folder else None,
            "last_step": self._last_step,
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._last_step = int(state_dict["last_step"])
        if self._given is None and state_dict["folder"] is not None:
            self._folder = Path(state_dict["folder"])

    @override
    def setup(
        self, trainer: Trainer, pl_module: LightningModule, stage: str
    ) -> None:
        """Refuse what cannot work before training starts."""
        if stage != "fit":
            return
        refuse_other_lightning(trainer)
        refuse_sharded(trainer, "CheckpointSnapshot")
        others = [
            c
            for c in callbacks_of(trainer)
            if isinstance(c, CheckpointSnapshot) and c is not self
        ]
        if any(other._given == self._given for other in others):
            raise ConfigurationError(
                "two CheckpointSnapshot callbacks write to one folder; give each its own dirpath="
            )

    @override
    def on_fit_start(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> None:
        """Find the folder; the log folder is collective, so every process asks for it."""
        log_dir = trainer.log_dir
        if self._folder is None:
            self._folder = (
                Path(log_dir or trainer.default_root_dir) / "snapshots"
            )

    @override
    def on_train_start(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> None:
        """Prepare the folder and save the initial weights."""
        if is_dry_run(trainer):
            return
        if trainer.global_step == 0:
            self._last_step = -1
        self._prepare(trainer.global_step)
        initial = (
            self._epochs is not None
            and self._last_step < 0 == trainer.global_step
        )
        if initial or self._schedule.due(self._last_step, trainer.global_step):
            self._save(trainer, pl_module)
        self._last_step = trainer.global_step

    @override
    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Save if a scheduled step was just taken (under accumulation most batches take none)."""
        if self._schedule.due(
            self._last_step, trainer.global_step
        ) and not is_dry_run(trainer):
            self._save(trainer, pl_module)
        self._last_step = max(self._last_step, trainer.global_step)

    @override
    def on_train_epoch_end(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> None:
        """Save after every n-th epoch."""
        due = (
            self._epochs is not None
            and (trainer.current_epoch + 1) % self._epochs == 0
        )
        if due and not is_dry_run(trainer):
            self._save(trainer, pl_module)

    @rank_zero_only
    def _prepare(self, step: int) -> None:
        """Make the folder; forget what an interrupted run wrote after the step from which training goes on."""
        folder = self.folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"cannot create the snapshot folder {folder}: {error.strerror or error}"
            ) from error
        known = read_index(folder) if (folder / INDEX).exists() else ()
        if known and step == 0:
            raise OutputError(
                f"{folder} holds the snapshots of another run; give another dirpath=, or resume that run"
            )
        self._drop([s for s in known if s.step > step], known)

    @rank_zero_only
    def _save(self, trainer: Trainer, module: LightningModule) -> None:
        step = trainer.global_step
        snapshot = Snapshot(
            step, trainer.current_epoch, self.folder / f"step={step:09d}.ckpt"
        )
        index = self.folder / INDEX
        known = read_index(self.folder) if index.exists() else ()
        if any(s.step == step and s.path.is_file() for s in known):
            return
        run_state: dict[str, Any] = {
            "epoch": snapshot.epoch,
            "global_step": step,
        }
        if module.hparams:
            run_state[module.CHECKPOINT_HYPER_PARAMS_NAME] = getattr(
                module, "_hparams_name", None
            )
            run_state[module.CHECKPOINT_HYPER_PARAMS_KEY] = dict(
                module.hparams
            )
        write_checkpoint(
            snapshot.path,
            self._rounded(module),
            run_state=run_state,
            force=True,
        )
        kept = [*(s for s in known if s.step != step), snapshot]
        self._drop(surplus(kept, self._limit, self._keep), kept)

    def _rounded(self, module: LightningModule) -> dict[str, Tensor]:
        weights = weights_of(module)
        if self._dtype is None:
            return weights
        return {
            n: t.to(self._dtype) if t.is_floating_point() else t
            for n, t in weights.items()
        }

    def _drop(
        self, gone: Sequence[Snapshot], known: Sequence[Snapshot]
    ) -> None:
        """Rewrite the index first: a kill in between leaves a stray file, never an entry without one."""
        if gone or known:
            write_index(self.folder, [s for s in known if s not in gone])
        for snapshot in gone:
            snapshot.path.unlink(missing_ok=True)
