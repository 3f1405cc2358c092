"""What the running model is compared with: a fixed state, its own past, or another run at the same step."""

from __future__ import annotations

import abc
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from lightning_rebasin.callbacks.snapshot import CheckpointSnapshot
from lightning_rebasin.callbacks.trainer import callbacks_of
from lightning_rebasin.checkpoints import read_checkpoint, write_checkpoint
from lightning_rebasin.errors import (
    BarrierWarning,
    CheckpointError,
    ConfigurationError,
    NonFiniteError,
)
from lightning_rebasin.landscape.copies import isolated_rng
from lightning_rebasin.landscape.trajectory import (
    INDEX,
    Snapshot,
    load_trajectory,
    read_index,
)
from lightning_rebasin.landscape.weights import (
    weights_of,
    without_compilation_prefix,
)
from lightning_rebasin.merging.interpolate import check_alike


class Reference(abc.ABC):
    """Where the weights at λ = 1 come from."""

    def check(self, trainer: Trainer, module: LightningModule) -> None:  # noqa: B027  (some have nothing to check)
        """Refuse, before training starts, what cannot work.

        Raises:
            RebasinError: The reference is missing, damaged or of another architecture.
        """

    def start(  # noqa: B027
        self, trainer: Trainer, module: LightningModule, file: Path
    ) -> None:
        """Training starts now; ``file`` may be written to keep something for a resumed run."""

    @abc.abstractmethod
    def weights(self, trainer: Trainer) -> Mapping[str, Tensor] | None:
        """The reference for the current step, or ``None`` if there is none."""

    def initial(self) -> Mapping[str, Tensor] | None:
        """The weights with which the run that the reference comes from began; ``None`` if they are not known."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027
        """Inverse of :meth:`state_dict`."""


class FixedReference(Reference):
    """One set of weights: a state dict, or a checkpoint file."""

    def __init__(self, source: Path | Mapping[str, Tensor]) -> None:
        self._source = source
        self._weights: Mapping[str, Tensor] | None = None

    @override
    def check(self, trainer: Trainer, module: LightningModule) -> None:
        if self._weights is None:
            state = (
                read_checkpoint(self._source).state_dict
                if isinstance(self._source, Path)
                else self._source
            )
            what = (
                str(self._source)
                if isinstance(self._source, Path)
                else "the reference"
            )
            self._weights = fitting(module, state, what)

    @override
    def weights(self, trainer: Trainer) -> Mapping[str, Tensor] | None:
        return self._weights


class InitialReference(Reference):
    """The weights with which training began; kept in a file, so that a resumed run still knows them."""

    def __init__(self) -> None:
        self._weights: Mapping[str, Tensor] | None = None
        self._file: Path | None = None

    @override
    def start(
        self, trainer: Trainer, module: LightningModule, file: Path
    ) -> None:
        if trainer.global_step == 0:
            self._weights = {
                name: tensor.to("cpu", copy=True)
                for name, tensor in weights_of(module).items()
            }
            self._file = file
            if trainer.is_global_zero:
                file.parent.mkdir(parents=True, exist_ok=True)
                write_checkpoint(file, self._weights, force=True)
        elif self._weights is None:
            if self._file is None:
                raise ConfigurationError(
                    "reference='init' is unknown: the checkpoint from which training resumes was written without this "
                    "LossBarrier. Pass the path of the initial weights as reference="
                )
            self._weights = fitting(
                module, read_checkpoint(self._file).state_dict, str(self._file)
            )

    @override
    def weights(self, trainer: Trainer) -> Mapping[str, Tensor] | None:
        return self._weights

    @override
    def initial(self) -> Mapping[str, Tensor] | None:
        return self._weights

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"file": str(self._file) if self._file else None}

    @override
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._file = Path(state["file"]) if state.get("file") else None


class PreviousReference(Reference):
    """The last snapshot before the current step, taken by a CheckpointSnapshot of the same trainer."""

    def __init__(self) -> None:
        self._snapshots: CheckpointSnapshot | None = None

    @override
    def check(self, trainer: Trainer, module: LightningModule) -> None:
        found = [
            c
            for c in callbacks_of(trainer)
            if isinstance(c, CheckpointSnapshot)
        ]
        if not found:
            raise ConfigurationError(
                "reference='previous' compares with the last snapshot: add CheckpointSnapshot(...) to the callbacks"
            )
        self._snapshots = found[0]

    @override
    def weights(self, trainer: Trainer) -> Mapping[str, Tensor] | None:
        assert self._snapshots is not None
        # Process 0 writes the snapshots; the others must not look before it has.
        trainer.strategy.barrier("lightning_rebasin.previous")
        folder = self._snapshots.folder
        known = read_index(folder) if (folder / INDEX).exists() else ()
        earlier = [s for s in known if s.step < trainer.global_step]
        return earlier[-1].state_dict() if earlier else None


class FolderReference(Reference):
    """Another run's snapshot of the same step."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._snapshots: Mapping[int, Snapshot] = {}

    @override
    def check(self, trainer: Trainer, module: LightningModule) -> None:
        self._snapshots = {s.step: s for s in load_trajectory(self._folder)}
        if not self._snapshots:
            raise CheckpointError(f"{self._folder} holds no snapshots")
        first = next(iter(self._snapshots.values()))
        fitting(module, first.state_dict(), str(first.path))

    @override
    def weights(self, trainer: Trainer) -> Mapping[str, Tensor] | None:
        snapshot = self._snapshots.get(trainer.global_step)
        if snapshot is None:
            steps = list(self._snapshots)
            warnings.warn(
                f"{self._folder} has no snapshot at step {trainer.global_step}, so nothing was measured; it has steps "
                f"{steps[0]} to {steps[-1]} ({len(steps)} snapshots). Measure at those steps (at_steps=)",
                BarrierWarning,
                stacklevel=2,
            )
            return None
        return snapshot.state_dict()

    @override
    def initial(self) -> Mapping[str, Tensor] | None:
        first = self._snapshots.get(0)
        return first.state_dict() if first else None


def make_reference(reference: str | Path | Mapping[str, Tensor]) -> Reference:
    """The reference that an argument names.

    Args:
        reference: ``"init"``, ``"previous"``, a checkpoint file, a folder of snapshots, or a state dict.
    """
    if isinstance(reference, Mapping):
        return FixedReference(reference)
    if reference == "init":
        return InitialReference()
    if reference == "previous":
        return PreviousReference()
    path = Path(reference)
    return FolderReference(path) if path.is_dir() else FixedReference(path)


def fitting(
    module: LightningModule, state: Mapping[str, Tensor], what: str
) -> dict[str, Tensor]:
    """``state`` with exactly the weights of ``module``.

    Raises:
        StateDictError: A tensor is missing, extra or has another shape.
        NonFiniteError: A tensor holds NaN or infinity.
    """
    with torch.no_grad(), isolated_rng():
        weights = weights_of(module)
        # Persistent states of metrics are in the state dict, but they are not weights.
        ignored: Collection[str] = set(
            without_compilation_prefix(module.state_dict())
        ) - set(weights)
        state = {
            n: t.detach()
            for n, t in without_compilation_prefix(state).items()
            if n not in ignored
        }
        check_alike((weights, state), ("the module", what))
        for name, tensor in state.items():
            if tensor.is_floating_point() and not bool(
                torch.isfinite(tensor).all()
            ):
                raise NonFiniteError(
                    f"{what}: tensor {name!r} holds NaN or infinity"
                )
        return state
