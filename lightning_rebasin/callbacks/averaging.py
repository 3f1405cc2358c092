"""Callbacks that average weights (``WeightAveraging``, ``EMAWeightAveraging``), and whose weights are measured then.

For a validation such a callback swaps the averaged weights into the module, and the current ones back afterwards.  So
what validation sees are the averaged weights, or, until the averaging has begun, those from before the training.
"""

from __future__ import annotations

import warnings
from typing import Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.utilities import rank_zero_info

from lightning_rebasin.callbacks.trainer import callbacks_of
from lightning_rebasin.errors import BarrierWarning, ConfigurationError
from lightning_rebasin.landscape.lightning_probe import copy_with_trainer

#: The weights that validation sees, or the current ones, which the optimizer moves.
Weights = Literal["validation", "current"]


def check_weights(weights: str) -> None:
    """Refuse what is not a choice.

    Raises:
        ConfigurationError: The message names the option and the choices.
    """
    if weights not in ("validation", "current"):
        raise ConfigurationError(
            f"weights={weights!r}; choose 'validation' or 'current'"
        )


def averaging_of(trainer: Trainer) -> WeightAveraging | None:
    """The callback that averages weights, if the trainer has one."""
    for callback in callbacks_of(trainer):
        if isinstance(callback, WeightAveraging):
            return callback
    return None


def name_averaging(trainer: Trainer, weights: Weights) -> None:
    """Say whose weights are measured if a callback averages them.

    Args:
        trainer: The trainer.
        weights: Which ones were asked for.
    """
    callback = averaging_of(trainer)
    if callback is None:
        return
    kind = type(callback).__name__
    if weights == "current":
        rank_zero_info(
            f"LossBarrier measures the current weights, not the averaged ones of {kind}"
        )
    else:
        rank_zero_info(
            f"LossBarrier measures the weights that validation uses: the averaged ones of {kind}"
        )


def measured_module(
    trainer: Trainer, module: LightningModule, weights: Weights
) -> LightningModule:
    """During a validation, a module with the weights that are to be measured.

    Args:
        trainer: The trainer that validates.
        module: Its module; it stays as it is, to the bit.
        weights: Which ones are wanted.

    Returns:
        The module itself, or a copy with the current weights.
    """
    callback = averaging_of(trainer)
    average = getattr(callback, "_average_model", None)
    if callback is None or average is None:
        return module
    if weights == "validation":
        if int(average.n_averaged) == 0:
            _warn_of_late_averaging(callback)
        return module
    # Lightning has no public way to the current weights while the averaged ones stand in for them.
    callback._swap_models(module)
    try:
        return copy_with_trainer(module)
    finally:
        callback._swap_models(module)


def _warn_of_late_averaging(callback: WeightAveraging) -> None:
    warnings.warn(
        f"{type(callback).__name__} has not begun to average: validation, and so LossBarrier, sees the weights from "
        "before the training. Measure later (at_steps=), or the current weights: LossBarrier(..., weights='current')",
        BarrierWarning,
        stacklevel=2,
    )
