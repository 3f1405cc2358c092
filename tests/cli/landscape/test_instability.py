"""``landscape instability``: files, going on, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.commands import Files, one_line, run

Capture = pytest.CaptureFixture[str]
LOADERS = """
import torch
from helpers.bistable import Bistable, noise

def pair():
    return noise(), [torch.zeros(1)]
"""


@pytest.fixture
def command(files: Files, tmp_path: Path) -> str:
    """The command on the network that the first samples decide."""
    name = f"bistable_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(LOADERS)
    network = f"--module {name}.Bistable --data {name}.pair"
    quick = "--epochs 3 --points 3 --no-progress"
    return f"landscape instability {network} {quick} -o out"


def test_it_writes_and_goes_on(
    command: str, tmp_path: Path, capsys: Capture
) -> None:
    assert run(command, "--forks 0 12 --seeds 2") == 0
    out = tmp_path / "out"
    first = json.loads((out / "instability.json").read_text())
    assert first["forks"] == [0, 12]
    assert first["steps"] == 36
    assert "instability" in capsys.readouterr().out
    kept = out / "runs/seed-2/step=12-child-1.ckpt"
    before = kept.stat().st_mtime_ns
    assert run(command, "--forks 12 --seeds 2 3 --force") == 0
    assert kept.stat().st_mtime_ns == before
    second = json.loads((out / "instability.json").read_text())
    assert second["seeds"] == [2, 3]
    assert second["curves"][0] == first["curves"][1]
    names = {"instability.json", "instability.csv", "instability.png"}
    assert {path.name for path in out.iterdir()} == {*names, "runs"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--forks 99", "ends before its fork at step 99"),
        ("--metric f1", "no metric 'f1'"),
        ("--module torch.nn.Identity", "must give a LightningModule"),
    ],
)
def test_what_cannot_work_is_one_line(
    command: str, arguments: str, message: str, capsys: Capture
) -> None:
    assert run(command, arguments) == 2
    assert message in one_line(capsys)


def test_data_are_needed(command: str, capsys: Capture) -> None:
    without = command.replace("--data", "--metric")
    assert run(without) == 2
    assert "give --data" in one_line(capsys)
