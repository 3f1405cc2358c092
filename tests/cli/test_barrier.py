"""The ``barrier`` command measures between two checkpoints, prints a table and draws it."""

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


@pytest.mark.parametrize(
    ("suffix", "module"),
    [
        ("png", "Plain"),
        ("csv", "network"),
        ("json", "network"),
        ("html", "network"),
    ],
)
def test_barrier_measures_and_draws(
    files: Files, tmp_path: Path, suffix: str, module: str, capsys: Capture
) -> None:
    code = run(
        f"barrier a.ckpt b.ckpt --module {files.loaders}.{module}",
        f"--input-shape 4,6 --data {files.loaders}.pair --points 3",
        f"--match --no-progress -o b.{suffix}",
    )
    assert code == 0
    lines = capsys.readouterr().out.splitlines()
    loss = next(line for line in lines if "loss" in line.split()[0])
    assert float(loss.split()[-1]) == pytest.approx(0, abs=1e-3)
    starts = {
        "png": b"\x89PNG",
        "csv": b"lam,naive_",
        "json": b"{",
        "html": b"<!doctype html>",
    }
    content = (tmp_path / f"b.{suffix}").read_bytes()
    assert content.startswith(starts[suffix])


LINEAR = '--module torch.nn.Linear --init-args \'{"in_features": 6, "out_features": 3}\''


def linear_ends() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Two linear classifiers, saved as p.pt and q.pt."""
    generator = torch.Generator().manual_seed(0)
    p, q = (
        {
            "weight": torch.randn(3, 6, generator=generator),
            "bias": torch.randn(3, generator=generator),
        }
        for _ in range(2)
    )
    torch.save(p, "p.pt")
    torch.save(q, "q.pt")
    return p, q


def by_hand(
    p: dict[str, Tensor], q: dict[str, Tensor], lam: float, samples: int
) -> tuple[float, float]:
    """Loss and accuracy at one point of the segment, in float64."""
    inputs, labels = (t[:samples] for t in blobs(50, 1).tensors)
    weight = ((1 - lam) * p["weight"] + lam * q["weight"]).double()
    bias = ((1 - lam) * p["bias"] + lam * q["bias"]).double()
    logits = inputs.double() @ weight.T + bias
    right = logits.log_softmax(1)[torch.arange(samples), labels]
    hits = (logits.argmax(1) == labels).double()
    return -float(right.mean()), float(hits.mean())


@pytest.mark.parametrize(("limit", "samples"), [("", 50), ("--limit 1", 16)])
def test_the_numbers_are_those_of_the_segment(
    files: Files, tmp_path: Path, limit: str, samples: int
) -> None:
    p, q = linear_ends()
    code = run(
        f"barrier p.pt q.pt {LINEAR} --data {files.loaders}.pair",
        f"--points 5 --no-progress -o out.csv {limit}",
    )
    assert code == 0
    with (tmp_path / "out.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["lam"]) for row in rows] == [0, 0.25, 0.5, 0.75, 1]
    for row in rows:
        loss, accuracy = by_hand(p, q, float(row["lam"]), samples)
        assert float(row["naive_loss"]) == pytest.approx(loss, rel=1e-5)
        assert float(row["naive_accuracy"]) == pytest.approx(accuracy)


def test_the_table_holds_ends_midpoint_and_barrier(
    files: Files, capsys: Capture
) -> None:
    p, q = linear_ends()
    data = f"--data {files.loaders}.pair --points 3 --no-progress"
    assert run(f"barrier p.pt q.pt {LINEAR}", data) == 0
    out = capsys.readouterr().out
    row = next(line for line in out.splitlines() if line.startswith("loss"))
    a, middle, b = (by_hand(p, q, lam, 50)[0] for lam in (0, 0.5, 1))
    barrier = max(a, middle, b) - (a + b) / 2
    expected = [a, b, middle, barrier]
    assert [float(n) for n in row.split()[1:]] == pytest.approx(
        expected, abs=1e-4
    )


def test_a_permutation_file_gives_the_second_curve(
    files: Files, tmp_path: Path
) -> None:
    network = f"--module {files.loaders}.network --input-shape 4,6"
    quiet = "--no-progress"
    assert run(f"match a.ckpt b.ckpt -o p.perm {network} {quiet}") == 0
    code = run(
        f"barrier a.ckpt b.ckpt {network} --data {files.loaders}.pair {quiet}",
        "--permutation p.perm --points 3 -o out.json",
    )
    assert code == 0
    curves = json.loads((tmp_path / "out.json").read_text())
    assert list(curves) == ["naive", "permuted"]
    start, middle, end = curves["permuted"]["values"]["loss"]
    assert middle == pytest.approx(start, rel=1e-4)
    assert end == pytest.approx(start, rel=1e-4)
    assert curves["naive"]["values"]["loss"][1] > start + 0.01


def test_an_unknown_metric_names_those_there_are(
    files: Files, tmp_path: Path, capsys: Capture
) -> None:
    linear_ends()
    code = run(
        f"barrier p.pt q.pt {LINEAR} --data {files.loaders}.pair",
        "--points 3 --no-progress --metric f1 -o out.png",
    )
    assert code == 2
    out, line = capsys.readouterr()
    assert "'f1'" in line
    assert "'loss', 'accuracy'" in line
    # No table: nothing was measured.
    assert out == ""
    assert not (tmp_path / "out.png").exists()


def test_one_point_is_no_segment(files: Files, capsys: Capture) -> None:
    linear_ends()
    code = run(
        f"barrier p.pt q.pt {LINEAR} --data {files.loaders}.pair --points 1"
    )
    assert code == 2
    assert "points=1" in one_line(capsys)


def test_an_existing_file_is_kept(
    files: Files, tmp_path: Path, capsys: Capture
) -> None:
    linear_ends()
    (tmp_path / "out.csv").write_text("mine")
    barrier = f"barrier p.pt q.pt {LINEAR} --data {files.loaders}.pair"
    assert run(barrier, "-o out.csv") == 2
    assert "--force" in one_line(capsys)
    assert (tmp_path / "out.csv").read_text() == "mine"


def test_an_unknown_format_is_refused_before_measuring(
    files: Files, tmp_path: Path, capsys: Capture
) -> None:
    linear_ends()
    barrier = f"barrier p.pt q.pt {LINEAR} --data {files.loaders}.pair"
    assert run(barrier, "-o out.txt") == 2
    captured = capsys.readouterr()
    assert captured.out == ""  # no table: nothing was measured
    assert "cannot write out.txt: the name must end in" in captured.err
    assert "png" in captured.err
    assert not (tmp_path / "out.txt").exists()


@pytest.mark.parametrize("name", ["picture", "out.PNG"])
def test_pictures_are_png_by_default_and_in_capitals(
    files: Files, tmp_path: Path, name: str
) -> None:
    linear_ends()
    code = run(
        f"barrier p.pt q.pt {LINEAR} --data {files.loaders}.pair",
        f"--points 3 --no-progress -o {name}",
    )
    assert code == 0
    assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "method", ["weight", "activation", "correlation", "auto"]
)
@pytest.mark.parametrize("module", ["Plain", "network"])
def test_barrier_matches_as_it_is_told(
    files: Files, capsys: pytest.CaptureFixture[str], method: str, module: str
) -> None:
    arguments = (
        f"--module {files.loaders}.{module} --data {files.loaders}.pair"
    )
    more = f"--points 3 --no-progress --method {method}"
    assert run("barrier a.ckpt b.ckpt", arguments, more) == 0
    out = capsys.readouterr().out
    line = next(x for x in out.splitlines() if "loss" in x.split()[0])
    naive, matched = (float(x) for x in line.split()[-2:])
    assert matched == pytest.approx(0, abs=1e-3)
    assert naive > 0.01
    assert ("matched by weight; distances" in out) == (method == "auto")


@pytest.mark.parametrize(
    "command",
    ["barrier a.ckpt b.ckpt", "landscape layers a.ckpt b.ckpt -o out"],
)
def test_data_that_do_not_fit_are_one_line(
    files: Files, command: str, capsys: Capture
) -> None:
    data = f"--module {files.loaders}.Plain --data {files.loaders}.narrow"
    assert run(command, data, "--no-progress") == 2
    assert "do --module and --data belong together?" in one_line(capsys)
    assert not Path("out").exists()
