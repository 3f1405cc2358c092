"""``landscape star``: a centre that loads as the user's module, rays and pairs."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from helpers.classifier import Classifier
from helpers.commands import Files, one_line, run

from lightning_rebasin import read_checkpoint

Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize("match", ["", "--match"])
def test_the_centre_and_its_rays(
    files: Files, tmp_path: Path, match: str, capsys: Capture
) -> None:
    code = run(
        f"landscape star a.ckpt b.ckpt -o out --module {files.loaders}.Scored --epochs 1",
        f"--data {files.loaders}.pair --points 3 --lr 0 --no-progress {match}",
    )
    assert code == 0
    out = tmp_path / "out"
    written = {path.name for path in out.iterdir()}
    assert written == {
        f"star.{end}" for end in ("json", "csv", "png", "html")
    } | {"center.ckpt"}
    found = json.loads((out / "star.json").read_text())
    assert len(found["rays"]) == 2
    assert found["pairs"][0]["ends"] == [0, 1]
    with (out / "star.csv").open() as file:
        rows = list(csv.DictReader(file))
    joined = [(row["from"], row["to"]) for row in rows[::3]]
    assert joined == [("0", "1"), ("0", "2"), ("1", "2")]
    assert "barrier to the center" in capsys.readouterr().out
    loaded = Classifier.load_from_checkpoint(
        out / "center.ckpt", weights_only=True
    )
    # Nothing was learned: the centre is the average, of copies that are the same once they are matched.
    a, b = (read_checkpoint(f"{name}.ckpt").state_dict for name in "ab")
    name = "net.fc1.weight"
    expected = a[name] if match else (a[name] + b[name]) / 2
    torch.testing.assert_close(loaded.state_dict()[name], expected)


def test_an_unknown_metric_is_one_line(
    files: Files, tmp_path: Path, capsys: Capture
) -> None:
    code = run(
        f"landscape star a.ckpt b.ckpt -o out --module {files.loaders}.Scored --epochs 1",
        f"--data {files.loaders}.pair --points 3 --metric f9 --no-progress",
    )
    assert code == 2
    assert "no metric 'f9'" in one_line(capsys)
    assert not (tmp_path / "out").exists()
