"""An interrupted training of a curve goes on where it was, and damaged or foreign ones are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers.commands import Files, one_line, run
from lightning.pytorch import Trainer

from lightning_rebasin.cli.landscape import resume

Capture = pytest.CaptureFixture[str]
QUICK = "--points 3 --no-progress"


def command(files: Files, *more: str) -> int:
    """Four epochs between the two checkpoints of the folder."""
    data = f"--module {files.loaders}.Scored --data {files.loaders}.pair"
    what = f"landscape curve a.ckpt b.ckpt -o out --epochs 4 {data} {QUICK}"
    return run(what, *more)


@pytest.fixture
def interrupted(
    files: Files, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> Files:
    """Ctrl-C in the third epoch."""
    write = resume.KeepTraining.on_train_epoch_end

    def stop(self: object, trainer: Trainer, module: object) -> None:
        if trainer.current_epoch == 2:
            raise KeyboardInterrupt
        write(self, trainer, module)

    with monkeypatch.context() as patch:
        patch.setattr(resume.KeepTraining, "on_train_epoch_end", stop)
        assert command(files) == 130
    assert "interrupted" in one_line(capsys)
    return files


def test_the_training_goes_on(interrupted: Files) -> None:
    out = Path("out")
    assert [path.name for path in out.iterdir()] == [resume.NAME]
    kept = torch.load(out / resume.NAME, weights_only=True)
    assert kept["epoch"] == 1
    assert command(interrupted, "--resume") == 0
    assert not (out / resume.NAME).exists()
    assert json.loads((out / "curve.json").read_text())["curves"]


def test_a_resumed_training_has_all_its_epochs(
    interrupted: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    epochs = []
    write = resume.KeepTraining.on_train_epoch_end

    def listen(self: object, trainer: Trainer, module: object) -> None:
        epochs.append(trainer.current_epoch)
        write(self, trainer, module)

    monkeypatch.setattr(resume.KeepTraining, "on_train_epoch_end", listen)
    assert command(interrupted, "--resume") == 0
    assert epochs == [2, 3]


@pytest.mark.parametrize(
    ("more", "said"), [("--bends 2", "bends 1, not 2"), ("--seed 5", "seed 0")]
)
def test_other_options_are_refused(
    interrupted: Files, more: str, said: str, capsys: Capture
) -> None:
    assert command(interrupted, "--resume", more) == 2
    assert said in one_line(capsys)
    assert Path("out", resume.NAME).exists()


def test_nothing_to_resume(files: Files, capsys: Capture) -> None:
    assert command(files, "--resume") == 2
    assert "there is no out/training.ckpt" in one_line(capsys)
    assert not Path("out").exists()


def test_a_damaged_training_is_named(
    interrupted: Files, capsys: Capture
) -> None:
    Path("out", resume.NAME).write_bytes(b"not a checkpoint")
    assert command(interrupted, "--resume") == 2
    assert "out/training.ckpt is not a training" in one_line(capsys)


def test_without_resume_the_folder_is_kept(
    interrupted: Files, capsys: Capture
) -> None:
    assert command(interrupted) == 2
    assert "the folder out is not empty" in one_line(capsys)
