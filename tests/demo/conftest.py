"""Data of the demo, tiny."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import torch
from helpers.idx_files import write_idx


@pytest.fixture
def idx(tmp_path: Path) -> Path:
    """A tiny MNIST-like folder, one file gzipped, the others plain."""
    generator = torch.Generator().manual_seed(0)
    for stem, n in (("train", 60), ("t10k", 20)):
        images = torch.randint(
            0, 256, (n, 4, 4), generator=generator, dtype=torch.uint8
        )
        write_idx(tmp_path / f"{stem}-images-idx3-ubyte", images)
        labels = torch.arange(n, dtype=torch.uint8) % 10
        write_idx(tmp_path / f"{stem}-labels-idx1-ubyte", labels)
    plain = tmp_path / "t10k-labels-idx1-ubyte"
    plain.with_suffix(".gz").write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    return tmp_path
