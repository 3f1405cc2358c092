"""The YAML files of examples/merge_module: train twice, merge, load the merged file."""

from __future__ import annotations

import functools
import importlib
import sys
import warnings
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "merge_module"


def test_train_twice_then_merge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(
        "sklearn", reason="the example's data come with scikit-learn"
    )
    pytest.importorskip("jsonargparse")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(FOLDER))
    for name in ("main", "data", "networks"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    cli = functools.partial(
        importlib.import_module("main").MergeCLI,
        save_config_kwargs={"overwrite": True},
    )
    quiet = [
        "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
        "--trainer.accelerator=cpu",
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for seed, name in ((1, "a"), (2, "b")):
            arguments = [
                f"--seed_everything={seed}",
                f"--trainer.callbacks.filename={name}",
                "--trainer.max_epochs=3",
            ]
            cli(
                args=[
                    "fit",
                    f"--config={FOLDER / 'train.yaml'}",
                    *arguments,
                    *quiet,
                ]
            )
        arguments = [
            "--trainer.max_epochs=2",
            "--trainer.logger=false",
            "--merged=merged.ckpt",
        ]
        run = cli(
            args=[
                "fit",
                f"--config={FOLDER / 'merge.yaml'}",
                *arguments,
                *quiet,
            ]
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
    for name in ("main", "data", "networks"):
        monkeypatch.delitem(sys.modules, name, raising=False)
