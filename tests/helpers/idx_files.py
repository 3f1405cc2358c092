"""Idx files, the format of MNIST, written independently of the reader."""

from __future__ import annotations

import struct
from pathlib import Path

from torch import Tensor


def write_idx(path: Path, array: Tensor) -> None:
    """Four bytes of magic, the sizes in big endian, the bytes."""
    header = struct.pack(
        f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape
    )
    path.write_bytes(header + array.numpy().tobytes())
