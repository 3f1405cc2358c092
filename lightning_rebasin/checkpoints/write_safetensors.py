"""Writing safetensors one tensor at a time.

The format is made for it: eight bytes that say how long the header is, a JSON header that says where each tensor lies,
then the tensors' bytes without gaps::

    {"layer.weight": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}, "__metadata__": {"format": "pt"}}

Shapes and dtypes are known before any tensor is computed, so no more than one of them has to be in memory.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_rebasin.checkpoints.lazy import LazyTensors
from lightning_rebasin.errors import CheckpointError

#: What the format calls the dtypes.
NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.complex64: "C64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
#: The header ends at a multiple of this, so that every tensor lies at a multiple of its own size.
_ALIGNMENT = 8


def write_safetensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
) -> None:
    """Write a safetensors file.

    Args:
        path: The file; it is overwritten.
        tensors: What to write; lazy ones are asked for once, when their turn has come.
        metadata: Texts for the header.

    Raises:
        CheckpointError: A tensor has a dtype or a layout that the format does not know.
    """
    lazy = LazyTensors.of(tensors)
    described = lazy.plan
    # Larger numbers first, as the format's own writer does: then each tensor is aligned to the size of its numbers.
    order = sorted(
        described, key=lambda name: (-described[name].element_size(), name)
    )
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for name in order:
        begin, end = end, end + _bytes(described[name])
        header[name] = {
            "dtype": _dtype(name, described[name]),
            "shape": list(described[name].shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            tensor = lazy[name]
            if _bytes(tensor) != _bytes(described[name]):
                raise CheckpointError(
                    f"tensor {name!r} has the shape {tuple(tensor.shape)} and the dtype {tensor.dtype}, but the header "
                    f"says {tuple(described[name].shape)} and {described[name].dtype}"
                )
            file.write(_memory(tensor).data)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _dtype(name: str, tensor: Tensor) -> str:
    if tensor.layout != torch.strided or tensor.dtype not in NAMES:
        raise CheckpointError(
            f"safetensors cannot hold tensor {name!r} ({tensor.dtype}, {tensor.layout}): write a .pt file instead"
        )
    return NAMES[tensor.dtype]


def _memory(tensor: Tensor) -> NDArray[np.uint8]:
    """The tensor's numbers as bytes, lowest first."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    found: NDArray[np.uint8] = flat.view(torch.uint8).numpy()
    if sys.byteorder == "big":
        size = tensor.element_size()
        found = found.reshape(-1, size)[:, ::-1].reshape(-1)
    return np.ascontiguousarray(found)
