"""Two gloo processes with half of the batches each get the network that one process gets on all of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

TESTS = Path(__file__).resolve().parents[2]


def launch(out: Path, processes: int) -> list[dict[str, Any]]:
    """Run the processes side by side; returns what each of them found."""
    environment = {
        **os.environ,
        "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}",
        "OMP_NUM_THREADS": "1",
    }
    script = str(TESTS / "helpers" / "refit_ddp.py")
    running = []
    for rank in range(processes):
        command = [sys.executable, script, str(out)]
        running.append(
            subprocess.Popen(
                [*command, str(processes), str(rank)],
                env=environment,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    for process in running:
        errors = process.communicate(timeout=280)[1]
        assert process.returncode == 0, errors
    return [
        torch.load(out / f"{processes}-{rank}.pt", weights_only=True)
        for rank in range(processes)
    ]


@pytest.mark.timeout(600)
@pytest.mark.skipif(
    not torch.distributed.is_available(),
    reason="torch was built without distributed",
)
def test_two_processes_equal_one(tmp_path: Path) -> None:
    first, second = launch(tmp_path, 2)
    (alone,) = launch(tmp_path, 1)
    for name, tensor in first["state"].items():
        assert torch.equal(tensor, second["state"][name]), name
        torch.testing.assert_close(
            tensor, alone["state"][name], rtol=1e-4, atol=1e-5
        )
    assert first["scores"] == second["scores"]
    assert first["scores"] == pytest.approx(alone["scores"], rel=1e-4)
    # Without sums over processes each of them would say 112 and 16.
    assert first["samples"] == alone["samples"] == (224, 32)
    for name in ("method", "ridges"):
        assert first[name] == second[name] == alone[name]
    assert alone["method"] == "refit"
