"""Running one of these helpers as a program of its own, which starts processes that train together."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]


def launch(
    helper: str, out: Path, devices: int, size: int, *more: str
) -> None:
    """Run ``helpers/<helper>.py OUT DEVICES BATCH_SIZE [MORE]``; what it prints is shown if it fails."""
    places = f"{TESTS}{os.pathsep}{TESTS.parent}"
    script = TESTS / "helpers" / f"{helper}.py"
    done = subprocess.run(
        [
            sys.executable,
            str(script),
            str(out),
            str(devices),
            str(size),
            *more,
        ],
        env={**os.environ, "PYTHONPATH": places, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
