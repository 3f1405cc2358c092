"""One file to what it holds: safetensors, and the three formats of ``torch.save``.

Torch's own ``weights_only=True`` loader comes first, a restricted unpickler second, full unpickling only on request.
"""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_rebasin.checkpoints.guard import check_container
from lightning_rebasin.checkpoints.unpickle import restricted_pickle
from lightning_rebasin.errors import (
    CheckpointError,
    MissingExtraError,
    UnsafeLoadWarning,
)

#: What the safetensors format allows for a header.
_MOST_HEADER_BYTES = 100_000_000
#: Larger files stay on disk and are mapped into memory.
_MAP_FROM_BYTES = 64 * 2**20


def is_safetensors(path: Path) -> bool:
    """Eight bytes of header length, then a JSON object; also where the file ends before its header does."""
    with path.open("rb") as file:
        start = file.read(9)
    if len(start) < 9 or start[8:] != b"{":
        return False
    length = int.from_bytes(start[:8], "little")
    # A pickle or a zip may have this brace by chance, but hardly a short length before it.
    foreign = start[:2] == b"PK" or start[:1] == b"\x80"
    truncated = length < _MOST_HEADER_BYTES and not foreign
    return length < path.stat().st_size or truncated


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and header of a safetensors file."""
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise MissingExtraError(
            f"{path} is a safetensors file: pip install 'lightning-rebasin[safetensors]'"
        ) from error
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {
                name: file.get_tensor(name)
                for name in file.keys()  # noqa: SIM118
            }, file.metadata() or {}
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} is a damaged safetensors file: {error}"
        ) from error


def read_torch(path: Path, *, unsafe: bool) -> Any:
    """Whatever ``torch.save`` put into a file; what is not plain data is a stand-in unless ``unsafe``."""
    container = check_container(path)
    mapped = (
        container == "zip"
        and path.stat().st_size >= _MAP_FROM_BYTES
        and _is_stored(path)
    )
    refusal = ""
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # about formats that this reader exists for
        try:
            return torch.load(
                path, map_location="cpu", weights_only=True, mmap=mapped
            )
        except Exception as error:  # noqa: BLE001  torch.load raises a dozen unrelated types; the next reader decides
            refusal = str(error)
        try:
            if not unsafe:
                return torch.load(
                    path,
                    map_location="cpu",
                    weights_only=False,
                    pickle_module=restricted_pickle,
                    mmap=mapped,
                )
        except Exception as error:
            raise CheckpointError(
                f"{path} cannot be read: {_reason(error)}; {_advice(refusal)}"
            ) from error
    warnings.warn(
        f"unpickling {path} in full: any code in it runs now",
        UnsafeLoadWarning,
        stacklevel=5,
    )
    try:
        return torch.load(
            path, map_location="cpu", weights_only=False
        )  # the user asked for it
    except Exception as error:
        raise CheckpointError(
            f"{path} cannot be read, even with full unpickling: {_reason(error)}"
        ) from error


def _is_stored(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return all(
            entry.compress_type == zipfile.ZIP_STORED
            for entry in archive.infolist()
        )


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{lines[0][:200]}" if lines else type(error).__name__


def _advice(refusal: str) -> str:
    if "Unsupported" in refusal or "GLOBAL" in refusal:
        return "if you trust its author, try unsafe=True (--unsafe)"
    return (
        "it is damaged or not a checkpoint; copy it again, or use another one"
    )
