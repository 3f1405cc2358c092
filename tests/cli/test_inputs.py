"""The ``inputs`` command measures and connects pairs of one class, prints a table and writes it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from helpers.classifier import blobs
from helpers.commands import Files, one_line, run
from torch import nn

from lightning_rebasin import input_barrier
from lightning_rebasin.inputs import InputPaths

Capture = pytest.CaptureFixture[str]
LINEAR = '--module torch.nn.Linear --init-args \'{"in_features": 6, "out_features": 3}\''


def trained(name: str, seed: int) -> nn.Linear:
    """A linear classifier of the blobs, saved."""
    torch.manual_seed(seed)
    module = nn.Linear(6, 3)
    inputs, labels = blobs(200, 7).tensors
    optimizer = torch.optim.Adam(module.parameters(), 0.1)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(inputs), labels).backward()
        optimizer.step()
    torch.save(module.state_dict(), name)
    return module


def test_the_numbers_are_those_of_the_segments(
    files: Files, tmp_path: Path, capsys: Capture
) -> None:
    modules = [trained("p.pt", 0), trained("q.pt", 1)]
    code = run(
        f"inputs p.pt q.pt {LINEAR} --data {files.loaders}.pair --pairs 4",
        "--points 5 --no-progress -o out.json",
    )
    assert code == 0
    content = json.loads((tmp_path / "out.json").read_text())
    assert list(content) == ["p.pt", "q.pt"]
    table = capsys.readouterr().out.splitlines()
    inputs, labels = blobs(50, 1).tensors
    for module, (name, own) in zip(modules, content.items(), strict=True):
        paths = InputPaths.from_dict(own["straight"])
        assert len(paths) == 4
        for path in paths:
            ends = []
            for corner in path.corners:
                (row,) = (inputs == corner).all(1).nonzero().flatten()
                ends.append(int(row))
            label = labels[ends[0]]
            assert label == labels[ends[1]]
            a, b = inputs[ends]
            (expected,) = input_barrier(
                module, a[None], b[None], int(label), points=5
            )
            assert path.losses == pytest.approx(expected.losses, rel=1e-5)
            assert max(expected.losses[0], expected.losses[-1]) <= 0.5
        row = next(line for line in table if line.startswith(name)).split()
        assert row[1:3] == ["straight", "4"]
        assert float(row[4]) == pytest.approx(max(paths.maxima), abs=1e-4)


@pytest.mark.parametrize(
    ("suffix", "start"),
    [("png", b"\x89PNG"), ("csv", b"checkpoint,path,pair,lambda,loss")],
)
def test_connecting_and_drawing(
    files: Files, tmp_path: Path, suffix: str, start: bytes, capsys: Capture
) -> None:
    code = run(
        f"inputs a.ckpt --module {files.loaders}.network --pairs 3 --points 5",
        f"--data {files.loaders}.pair --connect --threshold 1.5 --pieces 2",
        f"--no-progress -o out.{suffix}",
    )
    assert code == 0
    out = capsys.readouterr().out
    assert "connected" in out.splitlines()[0]
    assert [line.split()[1] for line in out.splitlines()[1:3]] == [
        "straight",
        "connected",
    ]
    assert (tmp_path / f"out.{suffix}").read_bytes().startswith(start)
    if suffix == "csv":
        with (tmp_path / "out.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert {row["path"] for row in rows} == {"straight", "connected"}


def test_mistakes_are_said_on_one_line(
    files: Files, tmp_path: Path, capsys: Capture
) -> None:
    trained("p.pt", 0)
    data = f"--data {files.loaders}.pair --no-progress"
    for arguments, message in (
        (f"inputs p.pt {LINEAR} {data} --pairs 0", "--pairs must be"),
        (f"inputs p.pt {LINEAR}", "give --module and --data"),
        (f"inputs p.pt {LINEAR} {data} --threshold 0", "--threshold"),
        (f"inputs p.pt {LINEAR} {data} --points 1", "points=1"),
        (f"inputs p.pt {LINEAR} {data} -o out.txt", "cannot write out.txt"),
    ):
        assert run(arguments) == 2, arguments
        assert message in one_line(capsys)
