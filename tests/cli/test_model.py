"""The network and its example input, from options or from a LightningCLI configuration."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.commands import run_spec

from lightning_rebasin.errors import (
    ConfigurationError,
    RebasinError,
    TraceError,
)

Capture = pytest.CaptureFixture[str]
TOWER = "--module helpers.towers.Tower"
INPUT = "--input-shape 2,3"


def test_lightning_cli_configuration(tmp_path: Path, capsys: Capture) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        """
        seed_everything: true
        trainer: {max_epochs: 3}
        model:
          class_path: helpers.towers.Tower
          init_args:
            sizes: [3, 5]
            stem: {class_path: torch.nn.Linear, init_args: {in_features: 3, out_features: 4}}
        """
    )
    configured = f"--config {config} {INPUT}"
    assert run_spec(configured, "--explain head.weight") == 0
    assert "head.weight: parameter (5, 4)" in capsys.readouterr().out
    config.write_text("model: {width: 8}")  # a LightningCLI made for one class
    assert run_spec(configured, TOWER, "--explain stem.0.weight") == 0
    assert "stem.0.weight: parameter (8, 3)" in capsys.readouterr().out
    config.write_text(
        "fit: {model: {class_path: helpers.towers.Tower, init_args: {width: 11}}}"
    )
    assert run_spec(configured, "--explain stem.0.weight") == 0
    assert "stem.0.weight: parameter (11, 3)" in capsys.readouterr().out


def test_several_inputs_of_several_dtypes(capsys: Capture) -> None:
    inputs = "--input-shape 3,6 --input-dtype long --input-shape 3x6"
    assert run_spec("--module helpers.towers.Reader", inputs) == 0
    assert "2 groups" in capsys.readouterr().out


def test_example_input_array_and_functions(capsys: Capture) -> None:
    assert run_spec("--module helpers.towers.Exemplary") == 0
    mnist = "--module helpers.models.mnist_mlp --input-shape 1,784"
    assert run_spec(mnist, "--no-check") == 0
    assert "3 groups" in capsys.readouterr().out


BAD: list[tuple[str, type[RebasinError], str]] = [
    ("", ConfigurationError, "no model: give --module"),
    (
        f"--module nowhere.Class {INPUT}",
        ConfigurationError,
        "cannot import 'nowhere.Class'",
    ),
    (
        f"--module helpers.towers.Nothing {INPUT}",
        ConfigurationError,
        "cannot import 'helpers.towers.Nothing'",
    ),
    (f"--module Tower {INPUT}", ConfigurationError, "package.module.Class"),
    (
        f"--module helpers.towers.not_a_module {INPUT}",
        ConfigurationError,
        "makes a int",
    ),
    (
        f"{TOWER} {INPUT} --init-args {{",
        ConfigurationError,
        "--init-args is no JSON",
    ),
    (
        f"{TOWER} {INPUT} --init-args [1]",
        ConfigurationError,
        "must be a JSON object",
    ),
    (
        f"{TOWER} {INPUT} --init-args '{{\"colour\": 1}}'",
        ConfigurationError,
        "colour",
    ),
    (TOWER, ConfigurationError, "--input-shape"),
    (
        f"{TOWER} {INPUT} --input-dtype long --input-dtype long",
        ConfigurationError,
        "--input-dtype is given",
    ),
    (f"{TOWER} {INPUT} --input-high 0", ConfigurationError, "--input-high 0"),
    (f"{TOWER} --input-shape 2,99", TraceError, "example input"),
    (
        f"{TOWER} --config missing.yaml {INPUT}",
        ConfigurationError,
        "missing.yaml",
    ),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD)
def test_bad_options_are_named_and_nothing_is_written(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: str,
    error: type[RebasinError],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        run_spec(arguments, f"--output {tmp_path}/spec.json")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["3", "trainer: 1\nmodel: 3", ": :", "[1]"])
def test_bad_configurations_are_refused(tmp_path: Path, text: str) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(text)
    with pytest.raises(RebasinError, match=r"config\.yaml"):
        run_spec(f"--config {config}", INPUT)


@pytest.mark.parametrize("shape", ["a,b", "1,-3", "0", ""])
def test_bad_shapes_end_with_code_two(shape: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as caught:
        run_spec(TOWER, f"--input-shape '{shape}'")
    assert caught.value.code == 2
    assert "is no shape" in capsys.readouterr().err
