"""The network and its example input, from options or from a LightningCLI configuration."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest
import torch
from helpers.commands import assert_spec_refuses, run_spec, words
from helpers.towers import Exemplary, Reader, Tower
from torch import Tensor, nn

from lightning_rebasin.cli.model import (
    add_model_arguments,
    build_inputs,
    build_model,
)
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
def test_bad_descriptions_of_the_network_are_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: str,
    error: type[RebasinError],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_spec_refuses(tmp_path, arguments, error, message)


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
    assert "is not a shape" in capsys.readouterr().err


def parse(*parts: str) -> argparse.Namespace:
    """The options of the model, parsed."""
    parser = argparse.ArgumentParser()
    add_model_arguments(parser)
    return parser.parse_args(words(*parts))


def inputs(module: nn.Module, *parts: str) -> tuple[Tensor, ...]:
    """The inputs that the options describe."""
    return build_inputs(parse(*parts), module)


def test_the_seed_decides_the_weights() -> None:
    first, again, other = (
        build_model(parse(TOWER, f"--seed {seed}")).state_dict()
        for seed in (3, 3, 4)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


def test_the_seed_decides_the_inputs() -> None:
    first, again, other = (
        inputs(nn.ReLU(), "--input-shape 4,6", f"--seed {seed}")[0]
        for seed in (3, 3, 4)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_options_override_the_configuration(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        "model: {class_path: helpers.towers.Tower, init_args: {width: 11, sizes: [1, 7]}}"
    )
    module = build_model(
        parse(f"--config {config} --init-args '{{\"width\": 5}}'")
    )
    assert isinstance(module, Tower)
    assert module.head.out_features == 7
    shape = module.state_dict()["stem.0.weight"].shape
    assert tuple(shape) == (5, 3)


def test_a_configuration_may_name_the_class_alone(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("model: torch.nn.ReLU")
    assert isinstance(build_model(parse(f"--config {config}")), nn.ReLU)


def test_dtypes_go_to_the_shapes_in_turn() -> None:
    found = inputs(
        nn.ReLU(),
        "--input-shape 2 --input-shape 3 --input-shape 4 --input-shape 5",
        "--input-dtype bool --input-dtype double --input-dtype long",
    )
    assert [(x.dtype, tuple(x.shape)) for x in found] == [
        (torch.bool, (2,)),
        (torch.float64, (3,)),
        (torch.int64, (4,)),
        (torch.float32, (5,)),
    ]


@pytest.mark.parametrize(
    ("module", "option", "high"),
    [
        (nn.ReLU(), "", 2),
        (Reader(), "", 7),
        (nn.Sequential(nn.Embedding(9, 1), nn.Embedding(4, 1)), "", 4),
        (Reader(), "--input-high 3", 3),
        (nn.ReLU(), "--input-high 1", 1),
    ],
    ids=["no embedding", "embedding", "smallest", "asked for", "only zero"],
)
def test_integers_lie_below_the_smallest_embedding(
    module: nn.Module, option: str, high: int
) -> None:
    (drawn,) = inputs(module, "--input-shape 500 --input-dtype long", option)
    # Each of at most nine numbers comes up among 500 but for a chance below 1e-24.
    assert sorted(set(drawn.tolist())) == list(range(high))


def test_an_example_of_the_model_needs_no_inputs() -> None:
    assert inputs(Exemplary()) == ()
    with pytest.raises(ConfigurationError, match="no example input"):
        inputs(Tower())


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("raise RuntimeError('no licence')", "RuntimeError: no licence"),
        ("def f(:", "SyntaxError: invalid syntax"),
    ],
)
def test_code_that_cannot_be_imported_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, message: str
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken_code.py").write_text(code)
    with pytest.raises(
        ConfigurationError, match=f"'broken_code.Net': {message}"
    ):
        build_model(parse("--module broken_code.Net"))


def test_empty_arguments_of_a_configuration_are_none(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("model:\n  class_path: torch.nn.ReLU\n  init_args:\n")
    assert isinstance(build_model(parse(f"--config {config}")), nn.ReLU)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "{class_path: torch.nn.ReLU, init_args: [1]}",
            r"config\.yaml: init_args must map names to values, not be a list",
        ),
        ("{class_path: 3}", "cannot import 3: class_path must be a text"),
        (
            "{class_path: helpers.towers.Tower, init_args: {stem: {class_path: [a]}}}",
            r"cannot import \['a'\]",
        ),
    ],
    ids=["list of arguments", "number", "nested list"],
)
def test_a_malformed_model_section_is_refused(
    tmp_path: Path, text: str, message: str
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(f"model: {text}")
    with pytest.raises(ConfigurationError, match=message):
        build_model(parse(f"--config {config}"))
