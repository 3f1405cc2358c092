"""``landscape profile``: the line between two checkpoints, a random direction around one, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.commands import Files, one_line, run
from torch import nn

from lightning_rebasin.landscape import LossProfile

Capture = pytest.CaptureFixture[str]
LINEAR = '--module torch.nn.Linear --init-args \'{"in_features": 6, "out_features": 3}\''


def ends() -> None:
    for seed, name in enumerate("pq"):
        torch.manual_seed(seed)
        torch.save(nn.Linear(6, 3).state_dict(), f"{name}.pt")


def test_from_one_checkpoint_to_another(
    files: Files, tmp_path: Path, capsys: Capture
) -> None:
    ends()
    linear = f"{LINEAR} --data {files.loaders}.pair --no-progress"
    assert run(f"landscape profile p.pt q.pt {linear} -o out --points 3") == 0
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"profile.json", "profile.csv", "profile.png"}
    profile = LossProfile.from_json(tmp_path / "out/profile.json")
    assert profile.alphas == (0.0, 0.5, 1.0)
    assert run(f"barrier p.pt q.pt {linear} -o b.csv --points 3") == 0
    rows = (tmp_path / "b.csv").read_text().splitlines()[1:]
    losses = [float(row.split(",")[1]) for row in rows]
    assert profile.values["loss"] == pytest.approx(losses, rel=1e-6)
    bump = f"bump {profile.bump('loss'):.4f}"
    assert bump in capsys.readouterr().out


def test_around_one_checkpoint(files: Files, tmp_path: Path) -> None:
    ends()
    code = run(
        f"landscape profile p.pt {LINEAR} --data {files.loaders}.pair",
        "--points 5 --reach -0.5 0.5 --no-progress -o out --limit 1",
    )
    assert code == 0
    profile = LossProfile.from_json(tmp_path / "out/profile.json")
    assert profile.alphas == (-0.5, -0.25, 0.0, 0.25, 0.5)
    assert profile.samples == 16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("p.pt q.pt p.pt", "needs 2 or 1 checkpoints, got 3"),
        ("p.pt q.pt --points 1", "points=1"),
        ("p.pt q.pt --reach 1 0", "from 1.0 to 0.0"),
        ("p.pt q.pt --metric f1", "'f1'"),
    ],
)
def test_what_cannot_work_is_one_line(
    files: Files,
    tmp_path: Path,
    arguments: str,
    message: str,
    capsys: Capture,
) -> None:
    ends()
    code = run(
        f"landscape profile {arguments} {LINEAR} --no-progress",
        f"--data {files.loaders}.pair -o out --limit 1",
    )
    assert code == 2
    assert message in one_line(capsys)
    assert not (tmp_path / "out").exists()
