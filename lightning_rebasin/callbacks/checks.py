"""What a LossBarrier refuses before training starts: trainers and modules with which it could not measure."""

from __future__ import annotations

from collections.abc import Iterable

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.utilities.signature_utils import (
    is_param_in_hook_signature,
)

from lightning_rebasin.callbacks.matching import Matching
from lightning_rebasin.callbacks.strategy import refuse_sharded
from lightning_rebasin.errors import ConfigurationError
from lightning_rebasin.landscape.other_lightning import refuse_other_lightning


def check_trainer(
    trainer: Trainer, stage: str, matching: Matching, *, needs_batches: bool
) -> None:
    """Refuse a trainer that will run no validation, or none with what the matching needs.

    Args:
        trainer: The trainer.
        stage: ``"fit"`` or ``"validate"``.
        matching: How the reference is matched.
        needs_batches: Whether that compares activations on training batches.

    Raises:
        ConfigurationError: The message says what to change.
    """
    refuse_other_lightning(trainer)
    refuse_sharded(trainer, "LossBarrier")
    _refuse_folder_of_mlflow(trainer)
    if stage == "validate" and needs_batches:
        raise ConfigurationError(
            f"matching={matching!r} compares activations on the last training batches, and there is no "
            "training in trainer.validate: measure during fit(), or choose matching='weight'"
        )
    if stage == "fit" and not trainer.enable_validation:
        raise ConfigurationError(
            "LossBarrier measures on validation batches, but this trainer will run no validation: give fit() a "
            "validation loader, the module a validation_step, and leave limit_val_batches above 0"
        )


def _refuse_folder_of_mlflow(trainer: Trainer) -> None:
    """MLflow's old store makes a file of ``barrier/val_loss`` and a folder for ``barrier/val_loss/matched``: it cannot.

    Raises:
        ConfigurationError: A logger writes into such a store; the training would end with MLflow's own error.
    """
    for logger in trainer.loggers:
        # Only a folder has a place to save in; databases and servers have none.
        if isinstance(logger, MLFlowLogger) and logger.save_dir is not None:
            raise ConfigurationError(
                f"MLflow cannot keep metrics named like LossBarrier's in the folder {logger.save_dir}: give the "
                "logger a database, MLFlowLogger(tracking_uri='sqlite:///mlflow.db'), or a server"
            )


def check_prefixes(prefixes: Iterable[str]) -> None:
    """Refuse two LossBarriers whose numbers would have the same names.

    Args:
        prefixes: Those of all LossBarriers of a trainer.

    Raises:
        ConfigurationError: Two are the same.

    Example:
        >>> check_prefixes(["barrier", "barrier_previous"])
    """
    seen = set()
    for prefix in prefixes:
        if prefix in seen:
            raise ConfigurationError(
                f"two LossBarriers log under {prefix!r}; give each its own prefix="
            )
        seen.add(prefix)


def check_training_step(module: LightningModule, matching: Matching) -> None:
    """Refuse a training step that consumes its batches unseen, where activations are compared on them.

    Args:
        module: The module.
        matching: How the reference is matched.

    Raises:
        ConfigurationError: The message says what to change.
    """
    if is_param_in_hook_signature(
        module.training_step, "dataloader_iter", explicit=True
    ):
        raise ConfigurationError(
            f"matching={matching!r} compares activations on training batches, but "
            "training_step(dataloader_iter) consumes them unseen: use training_step(batch, batch_idx), or choose "
            "matching='weight'"
        )
