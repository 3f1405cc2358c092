"""Both callbacks from LightningCLI: YAML in, --print_config and back, help for every argument, the example as it is."""

from __future__ import annotations

import csv
import importlib.util
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from lightning.pytorch.cli import LightningCLI

from lightning_rebasin import CheckpointSnapshot, LossBarrier
from lightning_rebasin.landscape import load_trajectory

EXAMPLES = Path(__file__).parents[2] / "examples"
pytest.importorskip("jsonargparse")
pytest.importorskip(
    "sklearn", reason="the example trains on scikit-learn's digits"
)


def example():
    """The module ``examples/train.py``."""
    spec = importlib.util.spec_from_file_location(
        "example_train", EXAMPLES / "train.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def printed_by(capsys, monkeypatch, *arguments):
    """What LightningCLI prints before it exits."""
    module = example()
    # LightningCLI mistrusts args= while the process itself has arguments.
    monkeypatch.setattr(sys, "argv", ["train.py"])
    with pytest.raises(SystemExit) as stop:
        LightningCLI(
            module.Classifier, module.Digits, args=list(map(str, arguments))
        )
    assert not stop.value.code
    return capsys.readouterr().out


def test_the_example_runs_as_it_is(tmp_path):
    environment = {
        **os.environ,
        "PYTHONPATH": str(EXAMPLES.parent),
        "OMP_NUM_THREADS": "1",
    }
    command = [
        sys.executable,
        EXAMPLES / "train.py",
        "fit",
        "--config",
        EXAMPLES / "train.yaml",
    ]
    command += ["--trainer.enable_progress_bar", "false"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    run = tmp_path / "runs" / "first"
    with (run / "metrics.csv").open() as file:
        rows = [
            row
            for row in csv.DictReader(file)
            if row["barrier/val_loss/matched"]
        ]
    assert len(rows) == 10
    assert (
        float(rows[-1]["barrier/val_loss"])
        >= float(rows[-1]["barrier/val_loss/matched"])
        >= 0
    )
    assert (run / "barrier.csv").exists()
    assert (run / "barrier-previous.csv").exists()
    steps = [snapshot.step for snapshot in load_trajectory(run / "snapshots")]
    assert {0, 1, 2, 3, 6, 10, 18, 32, 230} <= set(steps)
    assert len(list((run / "checkpoints").glob("lowest-barrier*.ckpt"))) == 1


MATCHING = """
seed_everything: 3
model: {features: 64, width: 16, depth: 2}
data: {batch_size: 64}
trainer:
  max_epochs: 1
  accelerator: cpu
  enable_progress_bar: false
  enable_checkpointing: false
  logger: false
  limit_train_batches: 4
  callbacks:
"""


@pytest.mark.filterwarnings("ignore:The '(train|val)_dataloader' does not")
def test_every_matching_can_be_chosen_in_yaml(tmp_path, monkeypatch):
    names = ("none", "weight", "both", "activation", "correlation", "auto")
    text = MATCHING
    for name in names:
        text += f"""
    - class_path: lightning_rebasin.LossBarrier
      init_args: {{reference: init, matching: {name}, points: 2, prefix: {name}, metrics: [val_loss]}}
"""
    (tmp_path / "run.yaml").write_text(
        text + f"  default_root_dir: {tmp_path}\n"
    )
    module = example()
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    cli = LightningCLI(
        module.Classifier,
        module.Digits,
        args=["fit", "--config", str(tmp_path / "run.yaml")],
    )
    logged = cli.trainer.callback_metrics
    for name in names:
        assert (f"{name}/val_loss/matched" in logged) == (name != "none")
        assert (f"{name}/val_loss" in logged) == (name in ("none", "both"))
        assert (f"{name}/matching" in logged) == (name == "auto")
        assert (tmp_path / f"{name}.csv").exists()


def test_print_config_round_trips(tmp_path, capsys, monkeypatch):
    first = printed_by(
        capsys,
        monkeypatch,
        "fit",
        "--config",
        EXAMPLES / "train.yaml",
        "--print_config",
    )
    (tmp_path / "printed.yaml").write_text(first)
    second = printed_by(
        capsys,
        monkeypatch,
        "fit",
        "--config",
        tmp_path / "printed.yaml",
        "--print_config",
    )
    assert first == second
    assert (
        "serialize" not in first
    )  # what jsonargparse says of defaults that it cannot write
    printed = yaml.safe_load(first)["trainer"]["callbacks"]
    for entry, cls in (
        (printed[0], LossBarrier),
        (printed[2], CheckpointSnapshot),
    ):
        expected = set(inspect.signature(cls.__init__).parameters) - {"self"}
        assert set(entry["init_args"]) == expected
    assert printed[0]["init_args"]["reference"] == "init"


@pytest.mark.parametrize("cls", [LossBarrier, CheckpointSnapshot])
def test_every_argument_has_a_help_text(capsys, monkeypatch, cls):
    monkeypatch.setenv("COLUMNS", "120")
    text = printed_by(
        capsys,
        monkeypatch,
        "fit",
        "--trainer.callbacks.help",
        f"lightning_rebasin.{cls.__name__}",
    )
    documented = inspect.getdoc(cls).split("Args:")[1].split("Raises:")[0]
    for name in set(inspect.signature(cls.__init__).parameters) - {"self"}:
        assert f"--trainer.callbacks.{name} " in text
        words = documented.split(f"    {name}: ")[1].split("\n")[0].split()[:3]
        assert " ".join(words) in " ".join(text.split()), name
