"""The ``spec`` command prints a proved spec, writes it whole or not at all, and names the option that is wrong."""

import argparse
import json

import pytest
import torch
from helpers.models import mlp
from lightning.pytorch import LightningModule
from torch import nn

from lightning_rebasin.cli import spec as command
from lightning_rebasin.cli.main import main
from lightning_rebasin.errors import (
    ConfigurationError,
    EquivalenceError,
    OutputError,
    RebasinError,
    SpecError,
    TraceError,
)
from lightning_rebasin.symmetry import PermutationSpec


class Tower(nn.Module):
    """A stem given as a module or a width, and a head: nested classes of a LightningCLI configuration."""

    def __init__(self, stem=None, width=6, sizes=(1, 2)):
        super().__init__()
        self.stem = stem if stem is not None else mlp(3, width, 4)
        self.head = nn.Linear(4, sizes[-1])

    def forward(self, x):
        return self.head(self.stem(x).relu())


class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.net = nn.Embedding(7, 4), mlp(4, 5, 2)

    def forward(self, tokens, weights):
        return self.net((self.embed(tokens) * weights[..., None]).sum(1))


class Exemplary(Tower):
    example_input_array = torch.ones(2, 3)


class Stepwise(LightningModule):
    """Computes from a batch, in validation_step alone."""

    def __init__(self):
        super().__init__()
        self.net = mlp(3, 5, 2)

    def validation_step(self, batch):
        self.log(
            "loss",
            nn.functional.cross_entropy(self.net(batch["x"]), batch["y"]),
        )


def batches():
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    return [{"x": x, "y": torch.arange(4) % 2}]


class Dead(Tower):
    def forward(self, x):
        return super().forward(x) * 0


def not_a_module():
    return 3


def run(*arguments):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args([str(a) for a in arguments]))


def path(target):
    return f"{__name__}.{target.__name__}"


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "tower_models", sys.modules[__name__])


TOWER, INPUT = ("--module", "tower_models.Tower"), ("--input-shape", "2,3")


def test_prints_table_explains_proves_and_writes(tmp_path, capsys):
    target = tmp_path / "spec.json"
    assert (
        run(
            *TOWER,
            *INPUT,
            "--init-args",
            '{"width": 9}',
            "--explain",
            "head.weight",
            "--output",
            target,
        )
        == 0
    )
    out = capsys.readouterr().out
    assert (
        "acts on (tensor[dimension])" in out
        and "head.weight: parameter (2, 4)" in out
    )
    assert "proved: a random permutation" in out and f"wrote {target}" in out
    spec = PermutationSpec.load(target)
    assert sorted(g.size for g in spec.groups.values()) == [4, 9]


def test_no_check_and_pin(capsys):
    assert run(*TOWER, *INPUT, "--no-check", "--pin", "head.weight") == 0
    out = capsys.readouterr().out
    assert (
        "proved" not in out
        and "pinned by the user" in out
        and "1 group;" in out
    )


def test_lightning_cli_configuration(tmp_path, capsys):
    config = tmp_path / "config.yaml"
    config.write_text(
        """
        seed_everything: true
        trainer: {max_epochs: 3}
        model:
          class_path: tower_models.Tower
          init_args:
            sizes: [3, 5]
            stem: {class_path: torch.nn.Linear, init_args: {in_features: 3, out_features: 4}}
        """
    )
    assert run("--config", config, *INPUT, "--explain", "head.weight") == 0
    assert "head.weight: parameter (5, 4)" in capsys.readouterr().out
    config.write_text("model: {width: 8}")  # a LightningCLI made for one class
    assert (
        run("--config", config, *TOWER, *INPUT, "--explain", "stem.0.weight")
        == 0
    )
    assert "stem.0.weight: parameter (8, 3)" in capsys.readouterr().out
    config.write_text(
        "fit: {model: {class_path: tower_models.Tower, init_args: {width: 11}}}"
    )
    assert run("--config", config, *INPUT, "--explain", "stem.0.weight") == 0
    assert "stem.0.weight: parameter (11, 3)" in capsys.readouterr().out


def test_several_inputs_of_several_dtypes(capsys):
    shapes = (
        "--input-shape",
        "3,6",
        "--input-dtype",
        "long",
        "--input-shape",
        "3x6",
    )
    assert run("--module", "tower_models.Reader", *shapes) == 0
    assert "2 groups" in capsys.readouterr().out


def test_example_input_array_and_functions(capsys):
    assert run("--module", "tower_models.Exemplary") == 0
    assert (
        run(
            "--module",
            "helpers.models.mnist_mlp",
            "--input-shape",
            "1,784",
            "--no-check",
        )
        == 0
    )
    assert "3 groups" in capsys.readouterr().out


def test_data_give_the_example(capsys):
    assert (
        run(
            "--module",
            "tower_models.Stepwise",
            "--data",
            "tower_models.batches",
        )
        == 0
    )
    out = capsys.readouterr().out
    assert "1 group" in out and "proved" in out
    with pytest.raises(ConfigurationError, match="--data"):
        run("--module", "tower_models.Stepwise")


def test_same_seed_same_output(capsys):
    run(*TOWER, *INPUT, "--seed", "3")
    first = capsys.readouterr().out
    run(*TOWER, *INPUT, "--seed", "3")
    assert capsys.readouterr().out == first


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((), ConfigurationError, "no model: give --module"),
        (
            ("--module", "nowhere.Class", *INPUT),
            ConfigurationError,
            "cannot import 'nowhere.Class'",
        ),
        (
            ("--module", "tower_models.Nothing", *INPUT),
            ConfigurationError,
            "cannot import 'tower_models.Nothing'",
        ),
        (
            ("--module", "Tower", *INPUT),
            ConfigurationError,
            "package.module.Class",
        ),
        (
            ("--module", "tower_models.not_a_module", *INPUT),
            ConfigurationError,
            "makes a int",
        ),
        (
            (*TOWER, *INPUT, "--init-args", "{"),
            ConfigurationError,
            "--init-args is no JSON",
        ),
        (
            (*TOWER, *INPUT, "--init-args", "[1]"),
            ConfigurationError,
            "must be a JSON object",
        ),
        (
            (*TOWER, *INPUT, "--init-args", '{"colour": 1}'),
            ConfigurationError,
            "colour",
        ),
        (TOWER, ConfigurationError, "--input-shape"),
        (
            (*TOWER, *INPUT, "--input-dtype", "long", "--input-dtype", "long"),
            ConfigurationError,
            "--input-dtype is given",
        ),
        (
            (*TOWER, *INPUT, "--input-high", "0"),
            ConfigurationError,
            "--input-high 0",
        ),
        ((*TOWER, "--input-shape", "2,99"), TraceError, "example input"),
        (
            (*TOWER, *INPUT, "--explain", "head.wieght"),
            SpecError,
            "did you mean 'head.weight'",
        ),
        (
            (*TOWER, *INPUT, "--pin", "nothing"),
            SpecError,
            "no tensor 'nothing'",
        ),
        (("--module", "tower_models.Dead", *INPUT), EquivalenceError, "blind"),
        (
            (*TOWER, "--config", "missing.yaml", *INPUT),
            ConfigurationError,
            "missing.yaml",
        ),
    ],
)
def test_bad_options_are_named_and_nothing_is_written(
    tmp_path, monkeypatch, arguments, error, message
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        run(*arguments, "--output", tmp_path / "spec.json")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["3", "trainer: 1\nmodel: 3", ": :", "[1]"])
def test_bad_configurations_are_refused(tmp_path, text):
    config = tmp_path / "config.yaml"
    config.write_text(text)
    with pytest.raises(RebasinError, match=r"config\.yaml"):
        run("--config", config, *INPUT)


def test_unwritable_output(tmp_path):
    with pytest.raises(OutputError, match="nowhere"):
        run(*TOWER, *INPUT, "--output", tmp_path / "nowhere" / "spec.json")


@pytest.mark.parametrize("shape", ["a,b", "1,-3", "0", ""])
def test_bad_shapes_end_with_code_two(shape, capsys):
    with pytest.raises(SystemExit) as caught:
        run(*TOWER, "--input-shape", shape)
    assert caught.value.code == 2 and "is no shape" in capsys.readouterr().err


def test_written_file_is_plain_json(tmp_path):
    run(*TOWER, *INPUT, "-o", tmp_path / "spec.json")
    assert (
        json.loads((tmp_path / "spec.json").read_text())["format"]
        == "lightning-rebasin-spec"
    )


def test_an_existing_file_is_overwritten_only_by_force(tmp_path):
    target = tmp_path / "spec.json"
    target.write_text("mine")
    with pytest.raises(OutputError, match="--force"):
        run(*TOWER, *INPUT, "-o", target)
    assert target.read_text() == "mine"
    assert run(*TOWER, *INPUT, "-o", target, "--force") == 0
    assert target.read_text() != "mine"


def test_errors_are_one_line_with_code_two(capsys):
    assert main(["spec", *TOWER, "--input-shape", "2,99"]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert captured.err.startswith(
        "lightning-rebasin spec: error: Tower does not run on the example input"
    )
