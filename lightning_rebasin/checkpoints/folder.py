"""Model folders as Hugging Face writes them: which files hold the weights, and what stands beside them.

Such a folder has a ``config.json`` and the weights in one of four ways::

    model.safetensors               one file
    model.safetensors.index.json    an index {"weight_map": {"layer.weight": "model-00001-of-00002.safetensors"}}
    pytorch_model.bin               the same two with torch.save
    pytorch_model.bin.index.json

An index is a stranger's file: the names in it must be plain names of files in the folder.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from lightning_rebasin.checkpoints.distributed import (
    distributed_files,
    is_distributed,
)
from lightning_rebasin.errors import CheckpointError

CONFIG = "config.json"
#: Files with the weights, in the order in which ``transformers`` looks for them.
_WHOLE = ("model.safetensors", "pytorch_model.bin")
_INDEX_SUFFIX = ".index.json"
#: What travels to a merged folder: the model's and the tokenizer's description, not a card or a training log.
_COMPANIONS = (".json", ".txt", ".model", ".jinja", ".py")
#: An index of a million tensors has a tenth of this.
_MOST_JSON_BYTES = 2**30


@dataclass(frozen=True)
class ModelFolder:
    """Where the weights of a model folder are.

    Args:
        path: The folder.
        files: Names of the files with weights, in order.
        place: Tensor → file, as the index says; empty for a single file without an index.
        index: Name of the index, if there is one.
    """

    path: Path
    files: tuple[str, ...]
    place: Mapping[str, str] = field(default_factory=dict)
    index: str | None = None

    @property
    def safe(self) -> bool:
        """Whether the weights are safetensors files."""
        return self.files[0].endswith(".safetensors")

    @property
    def companions(self) -> tuple[Path, ...]:
        """The files beside the weights that describe the model and its tokenizer."""
        own = {*self.files, *([self.index] if self.index else ())}
        found = []
        for file in sorted(self.path.iterdir()):
            described = file.suffix in _COMPANIONS and file.is_file()
            # The index of weights in another format would point at files that are not there.
            foreign = file.name.endswith(_INDEX_SUFFIX)
            if described and file.name not in own and not foreign:
                found.append(file)
        return tuple(found)

    def config(self) -> dict[str, Any]:
        """What ``config.json`` says, under ``"config"``; empty without that file."""
        file = self.path / CONFIG
        return {"config": _read_json(file)} if file.is_file() else {}

    def check_shard(
        self, name: str, found: Collection[str], before: Collection[str]
    ) -> None:
        """Raise unless a file holds the tensors that the index promises, and none that an earlier file had.

        Raises:
            CheckpointError: The message names the tensor and the file.
        """
        promised = {
            tensor for tensor, file in self.place.items() if file == name
        }
        missing = sorted(promised - set(found))
        if missing:
            raise CheckpointError(
                f"{self.path / name} lacks the tensor {missing[0]!r}, which {self.index} promises; copy it again"
            )
        again = sorted(set(found) & set(before))
        if again:
            raise CheckpointError(
                f"{self.path / name} holds {again[0]!r} a second time; {self.index} must name one file per tensor"
            )


def find_model_folder(path: Path) -> ModelFolder | None:
    """The files of a model folder.

    Args:
        path: Any path.

    Returns:
        ``None`` if it is not a folder, or a folder without any of the usual names.

    Raises:
        CheckpointError: The index is damaged or names files that are not there.
    """
    if not path.is_dir():
        return None
    for name in _WHOLE:
        index = path / (name + _INDEX_SUFFIX)
        if index.is_file():
            place = _weight_map(index)
            files = tuple(sorted(set(place.values())))
            return ModelFolder(
                path, files, MappingProxyType(place), index.name
            )
        if (path / name).is_file():
            return ModelFolder(path, (name,))
    return None


def weight_files(path: Path) -> tuple[Path, ...]:
    """The files that hold the weights of a checkpoint: itself, or those of its folder."""
    folder = find_model_folder(path)
    if is_distributed(path):
        return distributed_files(path)
    if folder is None:
        return (path,)
    return tuple(path / name for name in folder.files)


def _weight_map(index: Path) -> dict[str, str]:
    """The index's table, each entry checked."""
    content = _read_json(index)
    table = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(table, dict) or not table:
        raise CheckpointError(
            f"{index} has no weight_map; it is not an index of weights"
        )
    for tensor, file in table.items():
        # A name with folders in it could point anywhere on the machine.
        plain = isinstance(file, str) and Path(file).name == file
        if not plain or file in {"", ".", ".."}:
            raise CheckpointError(
                f"{index} says that {tensor!r} is in {file!r}, which is not the name of a file beside it; do not use it"
            )
        if not (index.parent / file).is_file():
            raise CheckpointError(
                f"{index} says that {tensor!r} is in {file}, which is not there; copy the folder again"
            )
    return table


def _read_json(file: Path) -> Any:
    """A JSON file that may be damaged."""
    if file.stat().st_size > _MOST_JSON_BYTES:
        raise CheckpointError(f"{file} is too large for what it should be")
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise CheckpointError(
            f"{file} is not valid JSON ({error}); copy it again"
        ) from error
