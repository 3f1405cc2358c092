"""Files of transforms: the spec as JSON beside one tensor for each group.

``.safetensors`` files hold the tensors under the ids of their groups and the spec in the header; any other name gets
what ``torch.save`` writes, read with ``weights_only=True``.  What a file is shows in its first bytes, not in its name.
Elements are kept as they are (orders as int64, all others as float64), so a round trip gives back the same bits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from lightning_rebasin.errors import MissingExtraError, TransformError
from lightning_rebasin.files import atomic_path
from lightning_rebasin.symmetry.spec.spec import PermutationSpec

#: A zip archive, which is what ``torch.save`` writes.
_ZIP = b"PK"


@final
@dataclass(frozen=True)
class Stored:
    """What a file holds, not yet checked against each other.

    Args:
        format: What kind of transform the file says it is.
        spec: The spec.
        elements: Tensors by group.
    """

    format: str
    spec: PermutationSpec
    elements: Mapping[str, Tensor]


def write_transform(path: str | Path, stored: Stored, kept_as: str) -> None:
    """Write a file atomically.

    Args:
        path: The file; ``.safetensors`` decides the format.
        stored: What to write.
        kept_as: Under which key ``torch.save`` gets the elements.

    Raises:
        OutputError: The folder does not exist or cannot be written.
        MissingExtraError: safetensors is asked for, but not installed.
    """
    spec = json.dumps(stored.spec.to_dict())
    elements = {n: t.contiguous() for n, t in stored.elements.items()}
    with atomic_path(path) as temporary:
        if Path(path).suffix == ".safetensors":
            header = {"format": stored.format, "spec": spec}
            _safetensors().save_file(elements, str(temporary), header)
        else:
            payload = {
                "format": stored.format,
                "spec": spec,
                kept_as: elements,
            }
            torch.save(payload, temporary)


def read_transform(
    path: str | Path,
    kept_as: Mapping[str, str],
    word: str,
    error: type[TransformError],
) -> Stored:
    """Read a file.

    Args:
        path: The file.
        kept_as: For each format under which key ``torch.save`` got the elements.
        word: What is expected, for the message.
        error: What is raised.

    Raises:
        TransformError: The file is missing or damaged, or is something else.
    """
    try:
        payload, elements = _contents(path)
    except Exception as failure:  # both libraries raise a dozen unrelated types on foreign files
        # What torch says of a foreign file is a page of advice on something else.
        reason = str(failure).partition("\n")[0].partition(". ")[0]
        raise error(
            f"cannot read a {word} from {path} ({reason}): give a permutation or transform as 'lightning-rebasin "
            "match' writes it"
        ) from failure
    found = payload.get("format") if isinstance(payload, dict) else None
    if not isinstance(found, str) or found not in kept_as:
        raise error(f"{path} is not a {word} file")
    try:
        # SpecError and JSON errors are ValueErrors
        spec = PermutationSpec.from_dict(json.loads(payload["spec"]))
        if elements is None:
            elements = dict(payload[kept_as[found]])
    except (KeyError, TypeError, ValueError, RecursionError) as failure:
        raise error(
            f"{path} is not a valid {word} file: {failure!r}"
        ) from failure
    return Stored(found, spec, elements)


def _contents(path: str | Path) -> tuple[Any, dict[str, Tensor] | None]:
    """The payload of a file, and its tensors where they are not part of it."""
    with Path(path).open("rb") as file:
        start = file.read(9)
    # Eight bytes say how long the header of a safetensors file is; the header is JSON.
    if start[8:] != b"{" or start.startswith(_ZIP):
        return torch.load(path, map_location="cpu", weights_only=True), None
    with _safetensors("safe_open").safe_open(str(path), "pt") as opened:
        header = opened.metadata() or {}
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  (not a mapping)
    return header, tensors


def _safetensors(function: str = "") -> Any:
    """The module that writes, or the one that opens files.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        import safetensors
        import safetensors.torch
    except ImportError as missing:
        raise MissingExtraError(
            "files of transforms in safetensors: pip install 'lightning-rebasin[safetensors]'"
        ) from missing
    return safetensors if function else safetensors.torch
