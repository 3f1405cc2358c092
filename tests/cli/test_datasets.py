"""Data of the commands: from a function, a loader, a data module or a config; what is no data says so."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers.commands import MODULE, Files, one_line, run, words
from lightning.pytorch import LightningDataModule
from torch import Tensor

from lightning_rebasin.cli import datasets
from lightning_rebasin.cli.datasets import Data
from lightning_rebasin.errors import ConfigurationError, DataError

Capture = pytest.CaptureFixture[str]


def test_a_config_file_gives_network_and_data(
    files: Files, tmp_path: Path, capsys: Capture
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        f"fit:\n  model:\n    class_path: {MODULE}\n    init_args: {{hidden: 6, batch_norm: true}}\n"
        f"  data:\n    class_path: {files.loaders}.Blobs\n    init_args: {{samples: 32}}\n"
    )
    merge = "merge a.ckpt b.ckpt --config config.yaml"
    assert run(merge, "-o out.ckpt --no-progress") == 0
    out = capsys.readouterr().out
    # On a network that was never trained the loss likes what answers least.
    assert "method average" in out
    assert "held-out loss by alignment and correction" in out
    config.write_text(
        f"model: {{class_path: {MODULE}}}\ndata: {{class_path: {files.loaders}.Nothing}}\n"
    )
    assert run(merge, "-o o.ckpt") == 2
    assert "'data' section of config.yaml" in one_line(capsys)


def test_failing_user_code_is_reported(files: Files, capsys: Capture) -> None:
    code = run(
        "merge a.ckpt b.ckpt -o x.ckpt",
        f"--module {MODULE} --data {files.loaders}.broken",
    )
    assert code == 2
    assert "RuntimeError: no disk" in one_line(capsys)


# What a user's own file could hold, under the name ``own_data``.
NUMBERS = [torch.tensor([n]) for n in range(5)]
three = 3


def train_and_validate() -> tuple[list[Tensor], list[Tensor]]:
    return NUMBERS, NUMBERS[:2]


def forever() -> Iterator[Tensor]:
    while True:
        yield torch.zeros(1)


def nothing() -> list[Tensor]:
    return []


class Prepared(LightningDataModule):
    """Has batches only after ``prepare_data`` and ``setup("fit")``."""

    def __init__(self, start: int = 0) -> None:
        super().__init__()
        self.start = start
        self.calls: list[str] = []

    def prepare_data(self) -> None:
        self.calls.append("prepare")

    def setup(self, stage: str) -> None:
        self.calls.append(stage)

    def train_dataloader(self) -> list[Tensor]:
        assert self.calls == ["prepare", "fit"]
        return NUMBERS[self.start :]

    def val_dataloader(self) -> list[Tensor]:
        return NUMBERS[:1]


class Unvalidated(LightningDataModule):
    def train_dataloader(self) -> list[Tensor]:
        return NUMBERS


class Offline(Prepared):
    def prepare_data(self) -> None:
        raise OSError("no network")


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "own_data", sys.modules[__name__])


def load(*parts: str) -> Data:
    """The data that the options describe."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", type=Path)
    datasets.add_data_arguments(parser)
    return datasets.load_data(parser.parse_args(words(*parts)))


def numbers(batches: object) -> list[int]:
    assert isinstance(batches, list)
    return [int(batch) for batch in batches]


def test_no_option_is_no_data() -> None:
    assert load() == Data(train=(), validate=None)


def test_one_loader_serves_both_uses() -> None:
    data = load("--data own_data.NUMBERS --batches 3")
    assert numbers(data.train) == [0, 1, 2]
    assert data.validate is NUMBERS


def test_a_pair_is_training_and_validation() -> None:
    data = load("--data own_data.train_and_validate")
    assert numbers(data.train) == [0, 1, 2, 3, 4]
    assert numbers(data.validate) == [0, 1]


def test_a_data_module_is_prepared_first() -> None:
    data = load("--data own_data.Prepared")
    assert numbers(data.train) == [0, 1, 2, 3, 4]
    assert numbers(data.validate) == [0]


def test_without_validation_data_training_data_have_to_do(
    capsys: Capture,
) -> None:
    data = load("--data own_data.Unvalidated --batches 2")
    assert numbers(data.train) == [0, 1]
    assert data.validate is NUMBERS
    assert "Unvalidated has no val_dataloader" in capsys.readouterr().err


def test_no_more_batches_are_drawn_than_asked_for() -> None:
    data = load("--data own_data.forever --batches 4")
    assert len(data.train) == 4
    # Evaluating on the rest would never end, or find nothing left.
    assert data.validate is data.train


@pytest.mark.parametrize("count", [0, -1])
def test_at_least_one_batch_must_be_asked_for(count: int) -> None:
    message = f"--batches must be at least 1, got {count}"
    with pytest.raises(ConfigurationError, match=message):
        load(f"--data own_data.NUMBERS --batches {count}")


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("nothing", "own_data.nothing gives no training batch"),
        ("three", "own_data.three gives a int, not batches"),
        ("Offline", "own_data.Offline: OSError: no network"),
    ],
)
def test_what_is_no_data_is_named(place: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(f"--data own_data.{place}")


def test_a_config_gives_arguments_to_the_data(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        "data: {class_path: own_data.Prepared, init_args: {start: 3}}"
    )
    assert numbers(load(f"--config {config}").train) == [3, 4]


def test_a_config_may_describe_no_data(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("model: {class_path: torch.nn.ReLU}")
    assert load(f"--config {config}") == Data()


def test_the_option_wins_over_the_config(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("data: {class_path: own_data.Prepared}")
    data = load(f"--config {config} --data own_data.train_and_validate")
    assert numbers(data.validate) == [0, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: {root: here}", r"'data' section of .*no class_path"),
        ("data: 3", r"'data' section of .*no class_path"),
        ("a: : b", r"cannot read the config .*config\.yaml"),
        (
            "data: {class_path: own_data.Prepared, init_args: {stop: 3}}",
            r"'data' section of .*config\.yaml: .*stop",
        ),
    ],
)
def test_wrong_configs_are_named(
    tmp_path: Path, text: str, message: str
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(text)
    with pytest.raises(ConfigurationError, match=message):
        load(f"--config {config}")


def test_data_may_be_given_once_per_model(
    files: Files, capsys: Capture
) -> None:
    data = f"--data {files.loaders}.pair --data {files.loaders}.Blobs"
    merge = "merge a.ckpt b.ckpt -o out.ckpt --no-progress"
    assert run(merge, f"--module {MODULE}", data) == 0
    out = capsys.readouterr().out
    assert (
        f"the data came from {files.loaders}.pair and {files.loaders}.Blobs"
        in out
    )


def test_batches_of_several_sources_take_turns() -> None:
    first = Data([1, 3, 5], [10], ("a",))
    second = Data([2, 4], [20], ("b",))
    union = datasets._union([first, second])
    assert union.train == [1, 2, 3, 4, 5]
    assert union.validate is not None
    assert list(union.validate) == [10, 20]
    # A loader is gone through once per network that is evaluated.
    assert list(union.validate) == [10, 20]
    assert union.sources == ("a", "b")
