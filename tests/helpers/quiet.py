"""A trainer that says nothing and leaves nothing behind."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer


def quiet_trainer(folder: Path, **options: Any) -> Trainer:
    """Three epochs on the CPU unless told otherwise."""
    defaults: dict[str, Any] = {
        "max_epochs": 3,
        "logger": False,
        "enable_checkpointing": False,
        "accelerator": "cpu",
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": folder,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
    }
    return Trainer(**{**defaults, **options})


def fit_quietly(
    trainer: Trainer,
    module: LightningModule,
    train: Any,
    val: Any,
    ckpt_path: str | Path | None = None,
) -> Trainer:
    """Fit without Lightning's advice, and return the trainer."""
    with warnings.catch_warnings():
        for message in (
            ".*does not have many workers.*",
            ".*is deprecated.*",
            ".*callbacks used to create the checkpoint.*",
        ):
            warnings.filterwarnings("ignore", message=message)
        trainer.fit(module, train, val, ckpt_path=ckpt_path)
    return trainer
