"""Paths in two gloo processes: the same run as in one.  Paths from a YAML file."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import pytest
import torch
from helpers.classifier import Classifier, blobs
from helpers.launch import launch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader


@pytest.mark.timeout(900)
@pytest.mark.skipif(
    not torch.distributed.is_available(),
    reason="torch was built without distributed",
)
def test_two_ranks_equal_one_process(tmp_path: Path) -> None:
    launch("path_ddp", tmp_path, 2, 8)
    launch("path_ddp", tmp_path, 1, 16)
    one, first, second = (
        torch.load(tmp_path / f"{name}.pt", weights_only=True)
        for name in ("1-0", "2-0", "2-1")
    )
    for word in ("curve", "star"):
        mine, theirs, alone = first[word], second[word], one[word]
        assert mine["loss"] == theirs["loss"]
        assert mine["metrics"] == theirs["metrics"]
        for metric in ("val_loss", "val_acc", "val_auroc"):
            for name in ("mean", "worst"):
                key = f"val_{word}/{metric}/{name}"
                assert mine["metrics"][key] == pytest.approx(
                    alone["metrics"][key], rel=1e-6
                )
        assert mine["loss"] == pytest.approx(alone["loss"], rel=1e-9)
        for a, b, c in zip(
            mine["learned"], theirs["learned"], alone["learned"], strict=True
        ):
            assert torch.equal(a, b)
            torch.testing.assert_close(a, c, rtol=1e-9, atol=1e-11)


class Blobs(LightningDataModule):
    """Held-out data too."""

    def train_dataloader(self) -> DataLoader[tuple[torch.Tensor, ...]]:
        return DataLoader(blobs(64, 0), batch_size=16)

    def val_dataloader(self) -> DataLoader[tuple[torch.Tensor, ...]]:
        return DataLoader(blobs(32, 1), batch_size=16)


CURVE = """
model:
  class_path: lightning_rebasin.CurveModule
  init_args:
    model: {class_path: helpers.classifier.Classifier, init_args: {hidden: 16}}
    ends: [0.ckpt, 1.ckpt]
    curve: polygon
    t: beta
    beta: [2.0, 3.0]
    optimizer: {class_path: torch.optim.SGD, init_args: {lr: 0.1}}
"""
STAR = """
model:
  class_path: lightning_rebasin.StarModule
  init_args:
    model: {class_path: helpers.classifier.Classifier, init_args: {hidden: 16}}
    ends: [0.ckpt, 1.ckpt, 2.ckpt]
    center: 0.ckpt
    match: start
    t: 0.5
    lr_scheduler:
      {class_path: torch.optim.lr_scheduler.StepLR, init_args: {step_size: 1}}
"""


@pytest.mark.parametrize("text", [CURVE, STAR], ids=["curve", "star"])
def test_a_path_from_yaml(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("jsonargparse")
    from lightning.pytorch.cli import LightningCLI

    monkeypatch.chdir(tmp_path)
    for number in range(3):
        torch.manual_seed(number)
        state = copy.deepcopy(Classifier(16).state_dict())
        torch.save({"state_dict": state}, f"{number}.ckpt")
    (tmp_path / "path.yaml").write_text(text)
    quiet = [
        "--trainer.max_epochs=1",
        "--trainer.logger=false",
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = LightningCLI(
            datamodule_class=Blobs,
            args=["fit", "--config=path.yaml", *quiet],
            save_config_kwargs={"overwrite": True},
        )
    module, word = run.model, run.model.word
    assert f"val_{word}_loss" in run.trainer.callback_metrics
    written = run.trainer.checkpoint_callback.best_model_path
    again = type(module).load_from_checkpoint(
        written,
        weights_only=True,
        model=Classifier(16),
        ends=[f"{n}.ckpt" for n in range(len(module.ends))],
    )
    assert again.options == module.options
    for mine, theirs in zip(again.free, module.free, strict=True):
        for one, two in zip(mine, theirs, strict=True):
            assert torch.equal(one, two)
