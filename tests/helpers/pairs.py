"""Two sets of weights of one module."""

from __future__ import annotations

import torch
from lightning.pytorch import Trainer

from helpers.classifier import Classifier


def two_classifiers(**options):
    """A module that logs in every way, with a trainer to ask, and two sets of its weights."""
    torch.manual_seed(0)
    module = Classifier(**options)
    module.trainer = Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    a = {k: v.clone() for k, v in module.state_dict().items()}
    b = {
        k: v + torch.randn_like(v) if v.is_floating_point() else v + 3
        for k, v in a.items()
    }
    return module, a, b
