"""The YAML files of examples/merge_module: train twice, merge, load the merged file."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch
from helpers.example_cli import NAMES, example_cli, train_ends


def test_train_twice_then_merge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = example_cli(tmp_path, monkeypatch)
    train_ends(fit, epochs=3)
    run = fit(
        "merge.yaml",
        "--trainer.max_epochs=2",
        "--trainer.logger=false",
        "--merged=merged.ckpt",
    )
    assert type(run.trainer.optimizers[0]) is torch.optim.SGD
    assert isinstance(
        run.trainer.lr_scheduler_configs[0].scheduler,
        torch.optim.lr_scheduler.CosineAnnealingLR,
    )
    own = torch.load(
        run.trainer.checkpoint_callback.best_model_path, weights_only=True
    )
    assert own["hyper_parameters"]["stands_for"] == "endpoint"
    mlp = importlib.import_module("networks").MLP
    merged = mlp.load_from_checkpoint(
        tmp_path / "merged.ckpt", weights_only=True, widths=[64, 128, 128, 10]
    )
    for name, tensor in run.model.merged_state_dict().items():
        assert torch.equal(tensor, merged.state_dict()[name])
    for name in NAMES:
        monkeypatch.delitem(sys.modules, name, raising=False)
