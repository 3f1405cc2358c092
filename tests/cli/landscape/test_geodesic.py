"""``landscape geodesic``: a chain between two checkpoints, its files, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.commands import Files, one_line, run
from torch import nn

from lightning_rebasin import read_checkpoint
from lightning_rebasin.landscape import GeodesicLength

Capture = pytest.CaptureFixture[str]
LINEAR = '--module torch.nn.Linear --init-args \'{"in_features": 6, "out_features": 3}\''


def ends() -> None:
    for seed, name in enumerate("pq"):
        torch.manual_seed(seed)
        state = {k: 9 * v for k, v in nn.Linear(6, 3).state_dict().items()}
        torch.save(state, f"{name}.pt")


def test_a_chain_and_its_files(
    files: Files, tmp_path: Path, capsys: Capture
) -> None:
    ends()
    code = run(
        f"landscape geodesic p.pt q.pt {LINEAR} --data {files.loaders}.pair",
        "--pieces 2 --steps 40 --lr 0.05 --points 5 --no-progress -o out",
    )
    assert code == 0
    out = tmp_path / "out"
    written = {path.name for path in out.iterdir()}
    paths = {
        f"path-{n}.{s}" for n in ("line", "geodesic") for s in ("json", "csv")
    }
    assert written == paths | {
        "energy.csv",
        "energy.png",
        "outputs-line.json",
        "outputs-geodesic.json",
        "outputs.png",
        "path.html",
        "path.png",
        *(f"network-{k}.ckpt" for k in range(3)),
    }
    line, chain = (
        GeodesicLength.from_json(out / f"outputs-{name}.json")
        for name in ("line", "geodesic")
    )
    assert chain.length < line.length
    first = read_checkpoint(out / "network-0.ckpt").state_dict
    given = torch.load("p.pt", weights_only=True)
    assert all(torch.equal(first[k], v) for k, v in given.items())
    assert "in 40 steps" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("p.pt", "needs 2 checkpoints, got 1"),
        ("p.pt q.pt --pieces 1", "pieces=1"),
        ("p.pt q.pt --steps 1 --points 1", "points=1"),
        ("p.pt q.pt --steps 1 --metric f1", "'f1'"),
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
        f"landscape geodesic {arguments} {LINEAR} --no-progress",
        f"--data {files.loaders}.pair -o out",
    )
    assert code == 2
    assert message in one_line(capsys)
    assert not (tmp_path / "out").exists()
