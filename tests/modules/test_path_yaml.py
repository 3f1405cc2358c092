"""The YAML files of paths in examples/merge_module: they run, watch a metric along the path, and write checkpoints."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
from helpers.example_cli import NAMES, example_cli, train_ends


def test_a_curve_and_a_star(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = example_cli(tmp_path, monkeypatch)
    train_ends(fit, epochs=1)
    network = importlib.import_module("networks").MLP
    for word in ("curve", "star"):
        short = ("--trainer.max_epochs=1", "--trainer.logger=false")
        run = fit(f"{word}.yaml", *short)
        logged = run.trainer.callback_metrics
        worst = float(logged[f"val_{word}/val_accuracy/worst"])
        assert 0 < worst <= float(logged[f"val_{word}/val_accuracy/mean"])
        best = Path(run.trainer.checkpoint_callback.best_model_path)
        assert best.parent == tmp_path / word
        again = type(run.model).load_from_checkpoint(
            best,
            weights_only=True,
            model=network([64, 128, 128, 10]),
            ends=["ends/a.ckpt", "ends/b.ckpt"],
        )
        assert again.permutations[1] == run.model.permutations[1]
    for name in NAMES:
        monkeypatch.delitem(sys.modules, name, raising=False)
