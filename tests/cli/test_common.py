"""Options that several commands share: names of tensors, stored hyper-parameters, import paths."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pytest
import torch
from helpers.classifier import Classifier
from helpers.commands import MODULE, Files, run, words
from torch import nn

from lightning_rebasin.checkpoints import Checkpoint, read_checkpoint
from lightning_rebasin.cli import common
from lightning_rebasin.errors import ConfigurationError


def parse(*parts: str) -> argparse.Namespace:
    """The shared options, parsed."""
    parser = argparse.ArgumentParser()
    common.add_model_arguments(parser)
    common.add_file_arguments(parser)
    return parser.parse_args(words(*parts))


def checkpoint(**hyper_parameters: object) -> Checkpoint:
    """A checkpoint that stores only these hyper-parameters."""
    return Checkpoint(
        state_dict={},
        metadata={"hyper_parameters": hyper_parameters},
        format="lightning",
        path=Path("a.ckpt"),
        wrapper=None,
        names={},
    )


def load(stored: Checkpoint, *parts: str) -> nn.Module:
    """The network that the options and the checkpoint describe."""
    module = common.load_module(parse(*parts), stored)
    assert module is not None
    return module


def classifier(stored: Checkpoint, *parts: str) -> Classifier:
    """The Classifier that the options and the checkpoint describe."""
    module = load(stored, f"--module {MODULE}", *parts)
    assert isinstance(module, Classifier)
    return module


def test_prefix_option(files: Files) -> None:
    torch.save({f"wrapped.{n}": t for n, t in files.state.items()}, "w.pt")
    merge = "merge w.pt w.pt -o o.pt --method average --no-progress --force"
    assert run(merge, "--prefix wrapped.") == 0
    assert run(merge, "--prefix wrapped.net=net --prefix wrapped.=x.") == 0
    assert list(torch.load("o.pt", weights_only=True)) == [
        f"wrapped.{n}" for n in files.state
    ]


@pytest.mark.parametrize(
    ("options", "prefix"),
    [
        ("", None),
        ("--prefix net.", "net."),
        ("--prefix net.=body.", {"net.": "body."}),
        ("--prefix net.=", {"net.": ""}),
        ("--prefix a. --prefix b.", {"a.": "", "b.": ""}),
        ("--prefix a.=b=c", {"a.": "b=c"}),
    ],
)
def test_a_prefix_is_removed_or_replaced(options: str, prefix: object) -> None:
    reading = common.reading_options(parse(options))
    assert reading == {
        "weights": "state_dict",
        "prefix": prefix,
        "unsafe": False,
    }


def test_reading_options_go_through() -> None:
    reading = common.reading_options(parse("--weights ema --unsafe"))
    assert reading["weights"] == "ema"
    assert reading["unsafe"] is True


def test_no_option_is_no_network() -> None:
    assert common.load_module(parse(), checkpoint(hidden=5)) is None


def test_the_network_is_ready_to_be_measured() -> None:
    assert not classifier(checkpoint()).training


def test_stored_hyper_parameters_make_the_network() -> None:
    stored = checkpoint(hidden=5, batch_norm=True)
    assert classifier(stored).hparams == {
        "hidden": 5,
        "dropout": 0.0,
        "noise": False,
        "batch_norm": True,
    }


def test_the_options_override_what_is_stored() -> None:
    stored = checkpoint(hidden=5, dropout=0.25)
    hparams = classifier(stored, "--init-args '{\"hidden\": 4}'").hparams
    assert hparams["hidden"] == 4
    assert hparams["dropout"] == 0.25


def test_stored_values_that_no_argument_takes_are_left_out() -> None:
    stored = checkpoint(hidden=5, colour="red", _class_path="x.Y", noise=print)
    hparams = classifier(stored).hparams
    assert hparams["hidden"] == 5
    assert hparams["noise"] is False
    assert set(hparams) == {"hidden", "dropout", "noise", "batch_norm"}


class Open(nn.Module):
    """Takes any argument."""

    def __init__(self, **settings: object) -> None:
        super().__init__()
        self.settings = settings


def make(hidden: int = 2) -> nn.Module:
    return nn.Linear(hidden, 1)


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "own_models", sys.modules[__name__])


def test_a_class_of_any_arguments_gets_all_public_ones() -> None:
    stored = checkpoint(hidden=5, colour="red", _class_path="x.Y")
    module = load(stored, "--module own_models.Open")
    assert module.settings == {"hidden": 5, "colour": "red"}


def test_a_function_gets_no_stored_hyper_parameters() -> None:
    module = load(checkpoint(hidden=5), "--module own_models.make")
    assert isinstance(module, nn.Linear)
    assert module.in_features == 2


def test_files_without_hyper_parameters_use_the_defaults(
    tmp_path: Path,
) -> None:
    path = tmp_path / "plain.pt"
    torch.save(Classifier(hidden=3).state_dict(), path)
    assert classifier(read_checkpoint(path)).hparams["hidden"] == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [("{", "--init-args is no JSON"), ("[3]", "must be a JSON object")],
)
def test_wrong_arguments_are_not_hidden_by_stored_ones(
    arguments: str, message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        classifier(checkpoint(hidden=5), f"--init-args '{arguments}'")


def test_an_example_has_the_shapes_asked_for() -> None:
    args = parse("--input-shape 4,6 --input-shape 2")
    shapes = [tuple(x.shape) for x in common.load_example(args, nn.ReLU())]
    assert shapes == [(4, 6), (2,)]
    assert common.load_example(args, None) is None
    assert common.load_example(parse(), nn.ReLU()) is None


@pytest.mark.parametrize("place", ["Net", ".Net", "package.", ""])
def test_an_import_path_has_two_parts(place: str) -> None:
    with pytest.raises(ConfigurationError, match="is not an import path"):
        common.load_object(place)


def test_code_of_the_working_folder_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["/elsewhere"])
    (tmp_path / "only_here_7.py").write_text("answer = 42\n")
    assert common.load_object("only_here_7.answer") == 42
    common.search_here()
    assert sys.path == [str(tmp_path), "/elsewhere"]


def test_an_import_that_fails_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    (tmp_path / "licensed.py").write_text("raise RuntimeError('no licence')")
    message = "cannot import 'licensed.Net': RuntimeError: no licence"
    with pytest.raises(ConfigurationError, match=message):
        common.load_object("licensed.Net")


def test_a_report_is_json_and_says_what_json_cannot(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    common.write_json(path, {"file": Path("a.ckpt"), "loss": 0.5})
    text = path.read_text()
    assert text.endswith("}\n")
    assert json.loads(text) == {"file": "a.ckpt", "loss": 0.5}
