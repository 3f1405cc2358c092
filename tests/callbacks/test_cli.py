"""Both callbacks from LightningCLI: YAML in, --print_config and back, help for every argument, the example as it is."""

from __future__ import annotations

import csv
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lightning_rebasin import CheckpointSnapshot, LossBarrier
from lightning_rebasin.landscape import load_trajectory

EXAMPLES = Path(__file__).parents[2] / "examples"
pytest.importorskip("jsonargparse")
pytest.importorskip("sklearn", reason="the example trains on scikit-learn's digits")


def train(folder, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent), "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    command = [sys.executable, str(EXAMPLES / "train.py"), *map(str, arguments)]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_example_runs_as_it_is(tmp_path):
    train(tmp_path, "fit", "--config", EXAMPLES / "train.yaml", "--trainer.enable_progress_bar", "false")
    run = tmp_path / "runs" / "first"
    with (run / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["barrier/val_loss/matched"]]
    assert len(rows) == 10
    assert float(rows[-1]["barrier/val_loss"]) >= float(rows[-1]["barrier/val_loss/matched"]) >= 0
    assert (run / "barrier.csv").exists()
    assert (run / "barrier-previous.csv").exists()
    steps = [snapshot.step for snapshot in load_trajectory(run / "snapshots")]
    assert {0, 1, 2, 3, 6, 10, 18, 32, 230} <= set(steps)
    assert len(list((run / "checkpoints").glob("lowest-barrier*.ckpt"))) == 1


def test_print_config_round_trips(tmp_path):
    first = train(tmp_path, "fit", "--config", EXAMPLES / "train.yaml", "--print_config")
    (tmp_path / "printed.yaml").write_text(first)
    second = train(tmp_path, "fit", "--config", tmp_path / "printed.yaml", "--print_config")
    assert first == second
    assert "serialize" not in first  # what jsonargparse says of defaults that it cannot write
    printed = yaml.safe_load(first)["trainer"]["callbacks"]
    for entry, cls in ((printed[0], LossBarrier), (printed[2], CheckpointSnapshot)):
        expected = set(inspect.signature(cls.__init__).parameters) - {"self"}
        assert set(entry["init_args"]) == expected
    assert printed[0]["init_args"]["reference"] == "init"


@pytest.mark.parametrize("cls", [LossBarrier, CheckpointSnapshot])
def test_every_argument_has_a_help_text(tmp_path, cls):
    text = train(tmp_path, "fit", "--trainer.callbacks.help", f"lightning_rebasin.{cls.__name__}")
    documented = inspect.getdoc(cls).split("Args:")[1].split("Raises:")[0]
    for name in set(inspect.signature(cls.__init__).parameters) - {"self"}:
        assert f"--trainer.callbacks.{name} " in text
        words = documented.split(f"    {name}: ")[1].split("\n")[0].split()[:3]
        assert " ".join(words) in " ".join(text.split()), name
