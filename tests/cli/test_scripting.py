"""What scripts rely on: ``--json`` on every command, and one meaning per option."""

from __future__ import annotations

import argparse
import json
from collections import defaultdict

import pytest
from helpers.commands import MODULE, Files, run

from lightning_rebasin.cli.completion import whole_parser

Capture = pytest.CaptureFixture[str]


def commands(
    parser: argparse.ArgumentParser, path: str = ""
) -> dict[str, argparse.ArgumentParser]:
    """The parser of every command, by what is typed."""
    found = {}
    inner = [a.choices for a in parser._actions if isinstance(a.choices, dict)]
    for choices in inner:
        for name, own in choices.items():
            found |= commands(own, f"{path} {name}".strip())
    return found or {path: parser}


def test_one_option_has_one_meaning() -> None:
    """The same word takes the same kind of value in every command that knows it."""
    meanings = defaultdict(lambda: defaultdict(list))
    for command, parser in commands(whole_parser()).items():
        for action in parser._actions:
            for option in action.option_strings:
                kind = getattr(action.type, "__name__", "text")
                many = action.nargs in ("+", "*")
                switch = action.nargs == 0
                meaning = (action.dest, "switch" if switch else kind, many)
                meanings[option][meaning].append(command)
    several = {
        option: dict(found)
        for option, found in meanings.items()
        if len(found) > 1
    }
    assert several == {}


def test_one_value_has_one_option() -> None:
    """No two commands call the same thing by different words."""
    words = defaultdict(set)
    for parser in commands(whole_parser()).values():
        for action in parser._actions:
            if action.option_strings:
                words[action.dest].add(tuple(sorted(action.option_strings)))
    several = {dest: found for dest, found in words.items() if len(found) > 1}
    # ``barrier`` matches unasked, so only there it can be switched off.
    assert several.pop("match") == {("--match",), ("--match", "--no-match")}
    assert several == {}


def result(capsys: Capture) -> dict[str, object]:
    """The printed object; anything else beside it would not parse."""
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def test_json_of_spec(files: Files, capsys: Capture) -> None:
    assert run(f"spec --module {MODULE} --input-shape 4,6 --json") == 0
    found = result(capsys)
    assert found["spec"]["groups"]
    assert found["equivalence_error"] < 1e-9


def test_json_of_match_apply_and_merge(files: Files, capsys: Capture) -> None:
    network = f"--module {files.loaders}.network --input-shape 4,6"
    quiet = "--no-progress --json"
    assert run("match a.ckpt b.ckpt -o p.perm", network, quiet) == 0
    assert result(capsys)["output"] == "p.perm"
    assert run("apply p.perm b.ckpt -o c.ckpt", network, quiet) == 0
    assert result(capsys)["equivalence_error"] < 1e-9
    assert run("merge a.ckpt b.ckpt -o m.ckpt", network, quiet) == 0
    assert result(capsys)["method"] == "weight"


def test_json_of_inputs(files: Files, capsys: Capture) -> None:
    network = f"--module {files.loaders}.network --data {files.loaders}.pair"
    more = "--pairs 4 --points 3 --threshold 100 --no-progress --json"
    assert run("inputs a.ckpt", network, more) == 0
    assert list(result(capsys)["a.ckpt"]) == ["straight"]


def test_an_error_prints_no_json(files: Files, capsys: Capture) -> None:
    assert (
        run("match a.ckpt missing.ckpt -o p.perm --json", f"--module {MODULE}")
        == 2
    )
    out, err = capsys.readouterr()
    assert out == ""
    assert "missing.ckpt" in err
