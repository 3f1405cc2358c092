"""The main job on embedded data: what it measures, what it writes, what it refuses."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from helpers.shared import shared_path

from lightning_rebasin.demo.model import Classifier
from lightning_rebasin.demo.run import (
    DemoReport,
    DemoSettings,
    evaluate_merged,
    run_demo,
)
from lightning_rebasin.errors import ConfigurationError, OutputError

Demo = tuple[DemoSettings, DemoReport]


@pytest.mark.parametrize("bad", [{"epochs": 0}, {"width": -1}, {"seed": -1}])
def test_settings_are_checked(tmp_path: Path, bad: dict[str, int]) -> None:
    with pytest.raises(ConfigurationError, match=f"--{next(iter(bad))}"):
        DemoSettings(tmp_path, None, **bad)


def test_an_unwritable_output_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    settings = DemoSettings(tmp_path / "file" / "out", epochs=1)
    with pytest.raises(OutputError, match="output folder"):
        run_demo(settings, progress=False)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    settings = DemoSettings(tmp_path_factory.mktemp("demo"))
    return settings, run_demo(settings, progress=False)


def test_the_naive_midpoint_is_broken_and_the_merged_one_is_not(
    demo: Demo,
) -> None:
    _, report = demo
    rows = {row.name: row for row in report.rows}
    ends = (rows["first (λ = 0)"].accuracy, rows["second (λ = 1)"].accuracy)
    assert min(ends) > 0.96
    assert rows["naive midpoint"].accuracy < min(ends) - 0.05
    assert rows["merged midpoint"].accuracy > max(ends) - 0.02
    assert report.naive_barrier > 0.5
    assert report.matched_barrier < 0.1 * report.naive_barrier
    assert report.equivalence_error < 1e-8


def test_everything_is_written(demo: Demo) -> None:
    settings, report = demo
    written = json.loads((settings.output / "report.json").read_text())
    assert written["naive_barrier"] == report.naive_barrier
    with (settings.output / "barrier.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 25
    assert float(lines[12]["naive_val_loss"]) == pytest.approx(
        report.rows[2].loss, rel=1e-6
    )
    picture = (settings.output / "barrier.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert list((settings.output / "snapshots").iterdir())


def test_the_merged_file_is_a_normal_lightning_checkpoint(demo: Demo) -> None:
    settings, report = demo
    tested = evaluate_merged(settings)
    merged = report.rows[3]
    assert tested["test_loss"] == pytest.approx(merged.loss, rel=1e-5)
    assert tested["test_accuracy"] == pytest.approx(merged.accuracy, abs=1e-6)
    path = settings.output / "merged.ckpt"
    payload = torch.load(path, weights_only=True)
    assert payload["hyper_parameters"]["width"] == 256
    assert isinstance(Classifier.load_from_checkpoint(path), Classifier)


def test_the_same_seed_gives_the_same_result(tmp_path: Path) -> None:
    reports = []
    for name in ("a", "b"):
        settings = DemoSettings(tmp_path / name, epochs=2, width=16, seed=3)
        reports.append(run_demo(settings, progress=False))
    assert reports[0].rows == reports[1].rows
    assert reports[0].objective == reports[1].objective


def test_idx_files_run_too(idx: Path, tmp_path: Path) -> None:
    settings = DemoSettings(tmp_path / "out", data_dir=idx, epochs=1, width=8)
    report = run_demo(settings, progress=False)
    assert len(report.rows) == 4


@pytest.mark.slow
def test_mnist_reproduces_the_published_barrier(tmp_path: Path) -> None:
    settings = DemoSettings(tmp_path, data_dir=shared_path("data/mnist"))
    report = run_demo(settings, progress=False)
    assert report.naive_barrier > 0.5
    assert report.matched_barrier <= 0.01
