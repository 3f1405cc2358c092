"""A barrier by several processes: the numbers of one, printed and written once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.commands import Files, run

from lightning_rebasin.cli.ranks import sharing, started_by_torchrun

TESTS = Path(__file__).resolve().parents[1]
_MAIN = "import sys; from lightning_rebasin.cli.main import main; sys.exit(main(sys.argv[1:]))"


_MEASURED = """
from helpers.classifier import CLASSES, Classifier
from torchmetrics.classification import MulticlassAccuracy

class Measured(Classifier):
    def __init__(self, **options):
        super().__init__(**options)
        self.own_accuracy = MulticlassAccuracy(CLASSES)
    def validation_step(self, batch, batch_idx):
        self.own_accuracy(self(batch[0]), batch[1])
        self.log('val_acc', self.own_accuracy)
"""


def together(
    folder: Path, count: int, *arguments: str
) -> subprocess.CompletedProcess[str]:
    """The command under torchrun."""
    (folder / "command.py").write_text(_MAIN)
    places = os.pathsep.join(map(str, (TESTS, TESTS.parent, folder)))
    launcher = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run"]
    launcher += ["--standalone", "--nproc-per-node", str(count)]
    return subprocess.run(
        [*launcher, "command.py", *arguments],
        env={**os.environ, "PYTHONPATH": places, "OMP_NUM_THREADS": "1"},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


# Of seven processes two have no point of their own.
@pytest.mark.parametrize("count", [2, 7])
def test_the_numbers_of_one_process(
    files: Files, tmp_path: Path, count: int
) -> None:
    command = f"barrier a.ckpt b.ckpt --module {files.loaders}.Plain --data {files.loaders}.pair --points 5"
    assert run(command, "-o one.json --no-progress") == 0
    done = together(tmp_path, count, *command.split(), "-o", "many.json")
    assert done.returncode == 0, done.stderr
    one, many = (
        json.loads((tmp_path / name).read_text())
        for name in ("one.json", "many.json")
    )
    assert set(one) == set(many) == {"naive", "matched"}
    for label, curve in one.items():
        (wanted, found) = (
            c["values"]["val_loss"] for c in (curve, many[label])
        )
        assert found == pytest.approx(wanted, rel=1e-5)
        assert many[label]["lambdas"] == curve["lambdas"]
    assert done.stdout.count("wrote many.json") == 1


def test_metrics_do_not_wait_for_other_points(
    files: Files, tmp_path: Path
) -> None:
    """Two processes have three points and two, and torchmetrics synchronises wherever there is a process group."""
    (tmp_path / "measured.py").write_text(_MEASURED)
    command = f"barrier a.ckpt b.ckpt --module measured.Measured --data {files.loaders}.pair --points 5"
    assert run(command, "-o one.json --no-progress --no-match") == 0
    done = together(
        tmp_path, 2, *command.split(), "--no-match", "-o", "many.json"
    )
    assert done.returncode == 0, done.stderr
    one, many = (
        json.loads((tmp_path / name).read_text())["naive"]["values"]
        for name in ("one.json", "many.json")
    )
    assert many["val_acc"] == pytest.approx(one["val_acc"])


def test_an_error_ends_all_of_them(files: Files, tmp_path: Path) -> None:
    done = together(
        tmp_path,
        2,
        *f"barrier a.ckpt missing.ckpt --module {files.loaders}.Plain".split(),
        "--data",
        f"{files.loaders}.pair",
    )
    assert done.returncode != 0
    assert "missing.ckpt" in done.stderr


def test_one_process_shares_with_nobody() -> None:
    assert not started_by_torchrun()
    with sharing() as share:
        assert (share.rank, share.size) == (0, 1)
        assert share.gather("x") == ["x"]
