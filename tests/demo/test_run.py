"""The main job on embedded data: what it measures, what it writes, what it refuses."""

from __future__ import annotations

import csv
import json
import logging
import math
from pathlib import Path

import pytest
import torch
from helpers.shared import shared_path

from lightning_rebasin.demo.model import Classifier
from lightning_rebasin.demo.run import (
    DemoReport,
    DemoSettings,
    Row,
    evaluate_merged,
    run_demo,
)
from lightning_rebasin.errors import ConfigurationError, DataError, OutputError

Demo = tuple[DemoSettings, DemoReport]


@pytest.mark.parametrize("bad", [{"epochs": 0}, {"width": -1}, {"seed": -1}])
def test_settings_are_checked(tmp_path: Path, bad: dict[str, int]) -> None:
    with pytest.raises(ConfigurationError, match=f"--{next(iter(bad))}"):
        DemoSettings(tmp_path, None, **bad)


def test_the_next_seed_must_be_one_too(tmp_path: Path) -> None:
    largest = 4_294_967_294
    assert DemoSettings(tmp_path, seed=largest).seed == largest
    with pytest.raises(ConfigurationError, match=f"at most {largest}"):
        DemoSettings(tmp_path, seed=largest + 1)


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


def test_the_barriers_are_those_of_the_written_curves(demo: Demo) -> None:
    settings, report = demo
    with (settings.output / "barrier.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [float(line["lam"]) for line in lines] == pytest.approx(
        [i / 24 for i in range(25)]
    )
    barriers = []
    for curve in ("naive", "matched"):
        losses = [float(line[f"{curve}_val_loss"]) for line in lines]
        barriers.append(max(losses) - (losses[0] + losses[-1]) / 2)
    assert report.naive_barrier == pytest.approx(barriers[0], rel=1e-6)
    assert report.matched_barrier == pytest.approx(barriers[1], abs=1e-6)
    for row, line in zip(report.rows, (lines[0], lines[-1]), strict=False):
        loss, accuracy = line["naive_val_loss"], line["naive_val_accuracy"]
        assert row.loss == pytest.approx(float(loss), rel=1e-6)
        assert row.accuracy == pytest.approx(float(accuracy))


def test_the_symmetries_are_counted(demo: Demo) -> None:
    _, report = demo
    # Three hidden layers of 256 units: log10 of (256!)^3.
    expected = 3 * math.lgamma(257) / math.log(10)
    assert report.symmetries == pytest.approx(expected)


def test_the_merged_weights_are_the_mean_of_matched_ends(demo: Demo) -> None:
    settings, _ = demo
    first, second, merged = (
        torch.load(settings.output / f"{name}.ckpt", weights_only=False)[
            "state_dict"
        ]
        for name in ("first", "second", "merged")
    )
    # The mean of all weights is blind to the order of the units.
    for name, tensor in merged.items():
        mean = (first[name].mean() + second[name].mean()) / 2
        torch.testing.assert_close(tensor.mean(), mean, rtol=1e-4, atol=1e-6)
    # Twice the mean less the first is the second, its units in another order.
    bias = "network.0.bias"
    matched = 2 * merged[bias] - first[bias]
    torch.testing.assert_close(
        matched.sort().values,
        second[bias].sort().values,
        rtol=0,
        atol=1e-6,
    )
    assert not torch.allclose(matched, second[bias])


def test_the_table_shows_barriers_of_midpoints_only() -> None:
    report = DemoReport(
        data="digits",
        settings={},
        rows=(
            Row("first (λ = 0)", 0.125, 0.9876),
            Row("naive midpoint", 1.5, 0.5),
            Row("merged midpoint", 0.25, 1.0),
        ),
        naive_barrier=1.375,
        matched_barrier=0.0625,
        symmetries=3.0,
        equivalence_error=0.0,
        objective=(1.0, 2.0),
        seconds={},
    )
    assert [line.split() for line in report.table().splitlines()] == [
        ["test", "loss", "accuracy", "barrier"],
        ["first", "(λ", "=", "0)", "0.1250", "98.76%"],
        ["naive", "midpoint", "1.5000", "50.00%", "1.3750"],
        ["merged", "midpoint", "0.2500", "100.00%", "0.0625"],
    ]


def test_the_loggers_speak_again_afterwards(tmp_path: Path) -> None:
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    missing = DemoSettings(tmp_path / "out", data_dir=tmp_path)
    with pytest.raises(DataError):
        run_demo(missing, progress=False)
    assert logger.level == level
    assert not (tmp_path / "out").exists()


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
