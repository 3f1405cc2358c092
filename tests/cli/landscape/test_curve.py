"""``landscape curve``: a bend that loads as the user's module, paths beside it, and what is refused."""

from __future__ import annotations

import csv
import importlib
import json
from pathlib import Path

import pytest
import torch
from helpers.classifier import Classifier, blobs
from helpers.commands import Files, one_line, run

from lightning_rebasin import read_checkpoint
from lightning_rebasin.landscape import measure_barrier

Capture = pytest.CaptureFixture[str]
QUICK = "--epochs 1 --points 5 --no-progress"


def command(files: Files, *more: str) -> int:
    data = f"--module {files.loaders}.Scored --data {files.loaders}.pair"
    return run(f"landscape curve a.ckpt b.ckpt -o out {data} {QUICK}", *more)


def test_the_curve_and_its_bend(
    files: Files, tmp_path: Path, capsys: Capture
) -> None:
    assert command(files, "--metric val_acc") == 0
    out = tmp_path / "out"
    written = {path.name for path in out.iterdir()}
    assert written == {
        f"curve.{end}" for end in ("json", "csv", "png", "html")
    } | {"bend.ckpt"}
    curves = json.loads((out / "curve.json").read_text())["curves"]
    assert list(curves) == ["naive", "curve"]
    # Everything that validation_step logs.
    assert set(curves["curve"]["values"]) == {"val_loss", "val_acc"}
    states = [read_checkpoint(f"{n}.ckpt").state_dict for n in "ab"]
    scored = importlib.import_module(files.loaders).Scored
    network = scored(hidden=6, batch_norm=True)
    batches = list(torch.utils.data.DataLoader(blobs(64, 0), 16))
    test = torch.utils.data.DataLoader(blobs(50, 1), 16)
    line = measure_barrier(
        network, *states, test, points=5, batch_norm=batches
    )
    naive = curves["naive"]["values"]["val_loss"]
    assert naive == pytest.approx(line.values["val_loss"], rel=1e-5)
    with (out / "curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == ["naive"] * 5 + ["curve"] * 5
    printed = capsys.readouterr().out
    assert "curve.png, curve.html, bend.ckpt" in printed
    loaded = Classifier.load_from_checkpoint(
        out / "bend.ckpt", weights_only=True
    )
    assert loaded.hparams["hidden"] == 6


def test_matched_copies_are_one_point_and_the_plane_is_refused(
    files: Files, tmp_path: Path, capsys: Capture
) -> None:
    """b.ckpt is a.ckpt in another order, so the matched segment has no length."""
    assert command(files, "--match") == 0
    out = tmp_path / "out"
    curves = json.loads((out / "curve.json").read_text())["curves"]
    assert list(curves) == ["naive", "matched", "curve"]
    assert curves["matched"]["straight"] == pytest.approx(0, abs=1e-5)
    assert curves["naive"]["straight"] > 1
    moved = read_checkpoint(out / "end-2.ckpt").state_dict
    for name, tensor in moved.items():
        torch.testing.assert_close(tensor, files.state[name])


def test_the_plane_of_both_ends_and_the_bend(
    files: Files, tmp_path: Path
) -> None:
    assert command(files, "--plane --limit 1 --curve polygon") == 0
    plane = json.loads((tmp_path / "out/plane.json").read_text())
    assert len(plane["models"]) == 3
    # The polygon turns at the bend.
    assert plane["curve"][30] == pytest.approx(plane["models"][2], abs=1e-4)
    assert (tmp_path / "out/plane.png").exists()


def test_several_bends_and_a_plain_module(
    files: Files, tmp_path: Path
) -> None:
    for name in "ab":
        whole = read_checkpoint(f"{name}.ckpt").state_dict
        bare = {n.removeprefix("net."): t for n, t in whole.items()}
        torch.save(bare, f"{name}.pt")
    code = run(
        f"landscape curve a.pt b.pt -o out --module {files.loaders}.network",
        f"--input-shape 4,6 --data {files.loaders}.pair {QUICK} --bends 2",
    )
    assert code == 0
    out = tmp_path / "out"
    curves = json.loads((out / "curve.json").read_text())["curves"]
    assert set(curves["curve"]["values"]) == {"loss", "accuracy"}
    assert (out / "bend-1.ckpt").exists()
    assert (out / "bend-2.ckpt").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--epochs 0", "--epochs must be at least 1"),
        ("--bends 0", "bends=0"),
        ("--bends 2 --plane", "--plane needs two checkpoints and one bend"),
        ("--metric f1", "'f1'"),
        ("--weight-decay -1", "negative"),
    ],
)
def test_what_cannot_work_is_one_line(
    files: Files,
    tmp_path: Path,
    arguments: str,
    message: str,
    capsys: Capture,
) -> None:
    assert command(files, arguments) == 2
    assert message in one_line(capsys)
    assert not (tmp_path / "out").exists()


def test_one_checkpoint_is_no_path(files: Files, capsys: Capture) -> None:
    data = f"--module {files.loaders}.Scored --data {files.loaders}.pair"
    assert run(f"landscape curve a.ckpt -o out {data}") == 2
    assert "two checkpoints or more, got 1" in one_line(capsys)
