"""Small quiet trainers on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger


def trainer_in(folder: Path, **kwargs: Any) -> Trainer:
    """A trainer that writes to ``folder``, two epochs long, without bars and summaries."""
    options: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 2,
        "logger": CSVLogger(folder, name="logs", version=0),
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
        "default_root_dir": folder,
    }
    return Trainer(**{**options, **kwargs})
