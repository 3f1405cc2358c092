"""The ``demo`` command prints what it measured and refuses sizes that make no sense."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
from helpers.commands import one_line, run

from lightning_rebasin.cli import demo

Capture = pytest.CaptureFixture[str]
TINY = "demo --epochs 1 --width 4 --no-progress"


def test_the_table_holds_the_numbers_of_the_report(
    tmp_path: Path, capsys: Capture
) -> None:
    assert run(TINY, f"--seed 5 --output {tmp_path}/out") == 0
    out = capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert "digits: two trainings, seeds 5 and 6" in out
    assert len(report["rows"]) == 4
    for row in report["rows"]:
        line = next(x for x in out.splitlines() if x.startswith(row["name"]))
        numbers = line.removeprefix(row["name"]).split()
        assert numbers[0] == f"{row['loss']:.4f}"
        assert numbers[1] == f"{100 * row['accuracy']:.2f}%"
    before, after = report["objective"]
    assert f"from {before:.1f} to {after:.1f} in" in out
    merged = report["rows"][-1]
    assert f"test_loss {merged['loss']:.4f}" in out
    assert f"to {tmp_path}/out" in out


def test_without_options_it_runs_the_digits() -> None:
    parser = argparse.ArgumentParser()
    demo.add_arguments(parser)
    assert vars(parser.parse_args([])) == {
        "output": Path("rebasin-demo"),
        "data_dir": None,
        "epochs": None,
        "width": None,
        "seed": 0,
        "no_progress": False,
    }


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--epochs 0", "--epochs must be at least 1, got 0"),
        ("--width -2", "--width must be at least 1, got -2"),
        ("--seed -1", "--seed must not be negative, got -1"),
    ],
)
def test_sizes_without_sense_are_refused_before_anything_is_made(
    tmp_path: Path, option: str, message: str, capsys: Capture
) -> None:
    assert run(TINY, option, f"--output {tmp_path}/out") == 2
    assert one_line(capsys) == f"lightning-rebasin demo: error: {message}"
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_idx_files_is_named(
    tmp_path: Path, capsys: Capture
) -> None:
    code = run(TINY, f"--data-dir {tmp_path} --output {tmp_path}/out")
    assert code == 2
    line = one_line(capsys)
    assert "train-images-idx3-ubyte" in line
    assert str(tmp_path) in line
    assert list(tmp_path.iterdir()) == []
