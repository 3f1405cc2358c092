"""``landscape plane``: numbers of a closed form, the curve drawn in, and what is refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from helpers.classifier import blobs
from helpers.commands import Files, one_line, run
from torch import Tensor

Capture = pytest.CaptureFixture[str]
LINEAR = '--module torch.nn.Linear --init-args \'{"in_features": 6, "out_features": 3}\''


def three() -> list[dict[str, Tensor]]:
    """Three linear classifiers, saved as p.pt, q.pt and r.pt."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for name in "pqr":
        state = {
            "weight": torch.randn(3, 6, generator=generator),
            "bias": torch.randn(3, generator=generator),
        }
        torch.save(state, f"{name}.pt")
        found.append(state)
    return found


def loss_of(state: dict[str, Tensor]) -> float:
    inputs, labels = blobs(50, 1).tensors
    logits = torch.nn.functional.linear(inputs, **state)
    return float(torch.nn.functional.cross_entropy(logits, labels))


def test_models_and_grid_have_their_losses(
    files: Files, tmp_path: Path, capsys: Capture
) -> None:
    states = three()
    code = run(
        f"landscape plane p.pt q.pt r.pt {LINEAR} --data {files.loaders}.pair",
        "--points 3 --margin 0 --no-progress -o out",
    )
    assert code == 0
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"plane.json", "plane.csv", "plane.png"}
    found = json.loads((tmp_path / "out/plane.json").read_text())
    expected = [loss_of(state) for state in states]
    assert found["model_values"]["loss"] == pytest.approx(expected, rel=1e-5)
    with (tmp_path / "out/plane.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 9
    assert float(rows[0]["loss"]) == pytest.approx(expected[0], rel=1e-5)
    out = capsys.readouterr().out
    assert f"{expected[1]:.4f}" in next(
        line for line in out.splitlines() if line.startswith("q ")
    )


def test_a_bezier_curve_is_drawn_from_end_to_end(
    files: Files, tmp_path: Path
) -> None:
    three()
    code = run(
        f"landscape plane p.pt q.pt r.pt {LINEAR} --data {files.loaders}.pair",
        "--points 2 --no-progress -o out --curve bezier",
    )
    assert code == 0
    plane = json.loads((tmp_path / "out/plane.json").read_text())
    a, b, bend = plane["models"]
    middle = [a[k] / 4 + bend[k] / 2 + b[k] / 4 for k in (0, 1)]
    assert plane["curve"][0] == pytest.approx(a, abs=1e-5)
    assert plane["curve"][30] == pytest.approx(middle, abs=1e-5)
    assert plane["off_plane"] == pytest.approx(0, abs=1e-3)


def test_matching_brings_copies_to_the_first(
    files: Files, tmp_path: Path, capsys: Capture
) -> None:
    """b.ckpt is a.ckpt in another order, so after matching they are one point and no plane is left."""
    network = f"--module {files.loaders}.Plain --data {files.loaders}.pair"
    quiet = "--no-progress --points 2"
    plane = f"landscape plane a.ckpt b.ckpt c.ckpt {network} {quiet}"
    other = {n: t * (1 + (t > 0)) for n, t in files.state.items()}
    torch.save({"state_dict": other}, "c.ckpt")
    assert run(plane, "-o naive") == 0
    assert run(plane, "--match -o matched") == 2
    assert "the first two models of a plane are the same" in one_line(capsys)
    assert not (tmp_path / "matched").exists()


def test_around_one_checkpoint(files: Files, tmp_path: Path) -> None:
    three()
    linear = f"{LINEAR} --data {files.loaders}.pair --no-progress --points 3"
    assert run(f"landscape plane p.pt {linear} -o out --levels linear") == 0
    plane = json.loads((tmp_path / "out/plane.json").read_text())
    assert plane["models"] == [[0.0, 0.0]]
    assert plane["values"]["loss"][1][1] == plane["model_values"]["loss"][0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("p.pt q.pt", "needs 3 or 1 checkpoints, got 2"),
        ("p.pt --match", "need three checkpoints"),
        ("p.pt q.pt r.pt --metric f1", "'f1'"),
        ("p.pt q.pt r.pt --points 1", "points=1"),
        ("p.pt q.pt gone.pt", "gone.pt"),
    ],
)
def test_what_cannot_work_is_one_line(
    files: Files,
    tmp_path: Path,
    arguments: str,
    message: str,
    capsys: Capture,
) -> None:
    three()
    code = run(
        f"landscape plane {arguments} {LINEAR} --no-progress",
        f"--data {files.loaders}.pair -o out --limit 1",
    )
    assert code == 2
    assert message in one_line(capsys)
    assert not (tmp_path / "out").exists()
