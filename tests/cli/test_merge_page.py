"""``merge --page``: the segment as it is, aligned, and the merged model, on one page."""

from __future__ import annotations

import json
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.commands import MODULE, Files, one_line, run

from lightning_rebasin import measure_barrier

Capture = pytest.CaptureFixture[str]


def curves_of(page: Path) -> dict[str, Any]:
    text = page.read_text("utf-8")
    found = re.search(r"<script[^>]*json[^>]*>(.*?)</script>", text, re.DOTALL)
    assert found is not None
    curves: dict[str, Any] = json.loads(found[1])["frames"][0]["curves"]
    return curves


def merge(files: Files, *more: str) -> int:
    return run(
        f"merge a.ckpt b.ckpt -o out.ckpt --module {files.loaders}.Plain",
        f"--data {files.loaders}.pair --page out.html --no-progress",
        *more,
    )


def test_three_curves(files: Files, tmp_path: Path, capsys: Capture) -> None:
    """b.ckpt is a.ckpt in another order."""
    assert merge(files, "--method weight --statistics reset") == 0
    assert "wrote out.html" in capsys.readouterr().out
    curves = curves_of(tmp_path / "out.html")
    assert list(curves) == ["naive", "aligned", "merged"]
    naive, aligned, merged = (
        curve["values"]["val_loss"] for curve in curves.values()
    )
    end = naive[0]
    assert max(naive) > end + 0.01
    assert aligned == pytest.approx([end] * len(aligned), rel=1e-3)
    assert curves["merged"]["lambdas"] == [0, 0.5, 1]
    assert (merged[0], merged[2]) == (naive[0], naive[-1])
    assert merged[1] == pytest.approx(end, rel=1e-3)


def test_the_middle_is_the_file_that_was_written(
    files: Files, tmp_path: Path
) -> None:
    assert merge(files, "--method average --statistics none") == 0
    payload = torch.load("out.ckpt", weights_only=True)
    state, code = payload["state_dict"], import_module(files.loaders)
    module = code.Plain(**payload["hyper_parameters"])
    wanted = measure_barrier(module, state, state, code.pair()[1], points=3)
    curves = curves_of(tmp_path / "out.html")
    assert list(curves) == ["naive", "merged"]
    middle = curves["merged"]["values"]["val_loss"][1]
    assert middle == pytest.approx(wanted.values["val_loss"][1], rel=1e-6)


def test_a_dry_run_has_no_merged_model(files: Files, tmp_path: Path) -> None:
    assert merge(files, "--method weight --dry-run") == 0
    assert not (tmp_path / "out.ckpt").exists()
    assert list(curves_of(tmp_path / "out.html")) == ["naive", "aligned"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--page out.html --data {}.pair --heads concatenate", "two models"),
        ("--page out.html --data {}.pair --untie --kinds all", "--untie"),
        ("--page out.html", "give --module and --data"),
        ("--page out.png --data {}.pair", "for instance merged.html"),
        ("--page nowhere/out.html --data {}.pair", "does not exist"),
    ],
)
def test_what_has_no_page_is_refused_before_anything_is_merged(
    files: Files, tmp_path: Path, capsys: Capture, options: str, message: str
) -> None:
    before = {path.name for path in tmp_path.iterdir()}
    code = run(
        f"merge a.ckpt b.ckpt -o out.ckpt --module {MODULE}",
        options.format(files.loaders),
    )
    assert code == 2
    assert message in one_line(capsys)
    assert {path.name for path in tmp_path.iterdir()} == before
