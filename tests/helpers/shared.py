"""Real data and checkpoints that live beside the repository, not in it."""

import os
from pathlib import Path

import pytest

ROOT = Path(
    os.environ.get(
        "REBASIN_SHARED", Path(__file__).resolve().parents[2].parent / "shared"
    )
)


def shared_path(relative: str) -> Path:
    """The file or folder under the shared root; skips the test with a reason where it is absent."""
    path = ROOT / relative
    if not path.exists():
        pytest.skip(f"needs {relative} under {ROOT} (set REBASIN_SHARED)")
    return path
