"""``barrier`` matches without being asked, and says why where it cannot."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from helpers.commands import Files, one_line, run
from torch import nn

Capture = pytest.CaptureFixture[str]
MORE = "--points 3 --no-progress"
LINEAR = '--module torch.nn.Linear --init-args \'{"in_features": 6, "out_features": 3}\''


def measured(files: Files, *more: str) -> int:
    """The command between the two checkpoints of the folder."""
    what = f"--module {files.loaders}.network --data {files.loaders}.pair"
    return run("barrier a.ckpt b.ckpt", what, MORE, *more)


def heads(capsys: Capture) -> list[str]:
    """The columns of the printed table."""
    return capsys.readouterr().out.splitlines()[0].split()


def test_both_lines_are_measured_unasked(
    files: Files, capsys: Capture
) -> None:
    assert measured(files) == 0
    assert heads(capsys)[-2:] == ["naive", "matched"]


def test_no_match_measures_one(files: Files, capsys: Capture) -> None:
    assert measured(files, "--no-match") == 0
    assert heads(capsys)[-1] == "naive"


@pytest.mark.parametrize("more", ["--method weight", "--permutation p.perm"])
def test_contradictions_are_refused(
    files: Files, more: str, capsys: Capture
) -> None:
    assert measured(files, "--no-match", more) == 2
    assert "--no-match contradicts" in one_line(capsys)


def test_a_network_without_symmetries_says_so(
    files: Files, capsys: Capture
) -> None:
    for name in ("p", "q"):
        torch.save(nn.Linear(6, 3).state_dict(), f"{name}.pt")
    more = f"{LINEAR} --input-shape 4,6 --data {files.loaders}.pair {MORE}"
    assert run("barrier p.pt q.pt", more) == 0
    out = capsys.readouterr().out
    assert "nothing to match" in out
    assert "matched" not in out


@pytest.mark.parametrize("asked", ["", "--match", "--method weight"])
@pytest.mark.filterwarnings("default::lightning_rebasin.errors.RebasinWarning")
def test_what_cannot_be_matched_is_an_error_only_if_asked(
    files: Files, asked: str, capsys: Capture
) -> None:
    # The network takes six numbers, so nothing can be traced with five.
    code = measured(files, "--input-shape 4,5", asked)
    out, err = capsys.readouterr()
    if asked:
        assert code == 2
        assert "naive" not in out
    else:
        assert code == 0
        assert "warning: only the naive barrier is measured" in err
        assert "naive" in out.splitlines()[0]


def test_a_damaged_spec_is_never_passed_over(
    files: Files, capsys: Capture
) -> None:
    Path("wrong.json").write_text("{}")
    assert measured(files, "--spec wrong.json") == 2
    assert "wrong.json" in one_line(capsys)


def test_json_is_all_that_is_printed(files: Files, capsys: Capture) -> None:
    assert measured(files, "--json -o curves.json") == 0
    out, err = capsys.readouterr()
    content = json.loads(out)
    assert list(content) == ["naive", "matched"]
    assert content == json.loads(Path("curves.json").read_text())
    assert re.search(r"wrote curves\.json", err)
