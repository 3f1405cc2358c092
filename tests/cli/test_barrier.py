"""The ``barrier`` command measures between two checkpoints, prints a table and draws it."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.commands import Files, run

Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize(
    ("suffix", "module"),
    [("png", "Plain"), ("csv", "network"), ("json", "network")],
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
    starts = {"png": b"\x89PNG", "csv": b"lam,naive_", "json": b"{"}
    content = (tmp_path / f"b.{suffix}").read_bytes()
    assert content.startswith(starts[suffix])
