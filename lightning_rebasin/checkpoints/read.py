"""Reading checkpoints of every kind, safely.

A file is first looked at from outside (:mod:`~lightning_rebasin.checkpoints.guard`), then read by torch's own
``weights_only=True`` loader.  If that refuses, because the file also holds an optimizer class, a loss function or some
callback, a restricted unpickler reads it instead and puts inert stand-ins in the place of everything it does not know
(:mod:`~lightning_rebasin.checkpoints.unpickle`).  Nothing that a file names is imported or called, unless the user asks
for it with ``unsafe=True``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from torch import Tensor

from lightning_rebasin.checkpoints.distributed import (
    is_distributed,
    load_chunks,
    nested,
    read_index,
    read_rest,
)
from lightning_rebasin.checkpoints.folder import ModelFolder, find_model_folder
from lightning_rebasin.checkpoints.guard import check_tensors
from lightning_rebasin.checkpoints.names import clean_names, find_weights
from lightning_rebasin.checkpoints.read_file import (
    is_safetensors,
    read_safetensors,
    read_torch,
)
from lightning_rebasin.checkpoints.unpickle import StandIn, is_stand_in
from lightning_rebasin.errors import CheckpointError

VERSION_KEY = "pytorch-lightning_version"
_LIVE_WEIGHTS = "current_model_state"

Format = Literal["lightning", "torch", "safetensors", "folder", "distributed"]


@dataclass(frozen=True, repr=False)
class Checkpoint:
    """What a checkpoint file holds.

    Args:
        state_dict: The weights on the CPU under clean names; large files stay on disk and are mapped into memory.
        metadata: Everything else in the file as plain values; what is not plain is a stand-in object.
        format: Who wrote the file.
        path: The file.
        wrapper: The key that held the weights, ``None`` if they were bare.
        names: Clean name → name in the file.
        filled: Tensors that the file lacks and that something else stands in for.
    """

    state_dict: Mapping[str, Tensor]
    metadata: Mapping[str, Any]
    format: Format
    path: Path
    wrapper: str | None
    names: Mapping[str, str]
    filled: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("state_dict", "metadata", "names"):
            object.__setattr__(
                self, name, MappingProxyType(dict(getattr(self, name)))
            )

    def __repr__(self) -> str:
        numbers = sum(tensor.numel() for tensor in self.state_dict.values())
        version = self.metadata.get(VERSION_KEY)
        return (
            f"Checkpoint({self.path}, {self.format}{f' {version}' if version else ''}, "
            f"{len(self.state_dict)} tensors, {numbers:,} numbers)"
        )


def read_checkpoint(
    path: str | Path,
    *,
    weights: str = "state_dict",
    prefix: str | Mapping[str, str] | None = None,
    unsafe: bool = False,
) -> Checkpoint:
    """Read the weights of a checkpoint file, and everything else in it that is plain data.

    Lightning ``.ckpt`` files of every version since 1.0, files of ``torch.save`` in its three formats (state dicts bare
    or wrapped, whole modules), safetensors, Hugging Face folders (whole or sharded, of either kind) and the folders of
    ``torch.distributed.checkpoint`` that FSDP trainings write are understood; the content decides, not the extension.

    Args:
        path: The file or the folder.
        weights: Which weights: ``"state_dict"``, the usual ones (the averaged ones in a file written with Lightning's
            ``WeightAveraging``); ``"current"``, the live weights of such a file; or any key of the file.
        prefix: What to do with the tensors' names: ``None`` removes ``_orig_mod.`` (compiled modules) and, outside
            Lightning files, a ``module.`` in front of all of them (``DataParallel``); a string is removed from the
            front of every name, ``""`` leaves the names alone; a mapping replaces old prefixes by new ones.
        unsafe: If torch's safe loader refuses the file, unpickle it in full, which runs any code it contains.  Only for
            files of people you trust, and only if the default reading failed.

    Returns:
        The weights, detached and on the CPU, and the rest.

    Raises:
        CheckpointError: The file is missing, empty, truncated, foreign or hostile, or lacks the weights asked for.
        MissingExtraError: It is a safetensors file, and that package is not installed.
    """
    path = Path(path)
    folder = find_model_folder(path)
    if is_distributed(path):
        state, metadata, wrapper = _read_distributed(path, weights, unsafe)
        kind: Format = "distributed"
    elif folder is None:
        _check_file(path)
        state, metadata, wrapper, kind = _read_weights(path, weights, unsafe)
    else:
        state = _read_shards(folder, weights, unsafe)
        metadata, wrapper, kind = folder.config(), None, "folder"
    try:
        rest = _metadata(metadata, wrapper, state)
        names = clean_names(state, prefix, lightning=VERSION_KEY in rest)
    except RecursionError as error:
        raise CheckpointError(
            f"{path} nests its contents too deep; do not use it"
        ) from error
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    tensors = {new: state[old] for new, old in names.items()}
    return Checkpoint(tensors, rest, kind, path, wrapper, names)


def _read_weights(
    path: Path, weights: str, unsafe: bool
) -> tuple[dict[str, Tensor], Mapping[Any, Any], str | None, Format]:
    """One file: its tensors, everything it holds, the key of the weights, and who wrote it."""
    metadata: Mapping[Any, Any]
    kind: Format
    wrapper = None
    if is_safetensors(path):
        state, metadata = read_safetensors(path)
        kind = "safetensors"
    else:
        payload = read_torch(path, unsafe=unsafe)
        state, wrapper = _find_in(path, payload, weights)
        metadata = payload if isinstance(payload, Mapping) else {}
        kind = "lightning" if VERSION_KEY in metadata else "torch"
    state = {name: _plain_tensor(tensor) for name, tensor in state.items()}
    check_tensors(path, state)
    return state, metadata, wrapper, kind


def _read_distributed(
    path: Path, weights: str, unsafe: bool
) -> tuple[dict[str, Tensor], Mapping[Any, Any], str | None]:
    """A folder of ``torch.distributed.checkpoint``: its tensors, everything else in it, and the key of the tensors."""
    entries = read_index(path)
    rest = read_rest(path, unsafe=unsafe)
    planned, wrapper = _find_in(path, {**rest, **nested(entries)}, weights)
    found = {(entry.under, entry.path[-1]): entry for entry in entries}
    state = {}
    for name in planned:
        state[name] = load_chunks(path, found[wrapper or "", name])
    return state, rest, wrapper


def _read_shards(
    folder: ModelFolder, weights: str, unsafe: bool
) -> dict[str, Tensor]:
    """The tensors of all files of a folder, checked against its index."""
    state: dict[str, Tensor] = {}
    for name in folder.files:
        shard = folder.path / name
        _check_file(shard)
        found = _read_weights(shard, weights, unsafe)[0]
        folder.check_shard(name, found, state)
        state |= found
    return state


def _find_in(
    path: Path, payload: Any, weights: str
) -> tuple[dict[str, Tensor], str | None]:
    """The weights that were asked for, and the key under which they are."""
    keys = {"state_dict": None, "current": _LIVE_WEIGHTS}
    try:
        return find_weights(payload, keys.get(weights, weights))
    except CheckpointError as error:
        hint = ""
        if weights == "current":
            hint = "; was it written with the WeightAveraging callback?"
        raise CheckpointError(f"{path}: {error}{hint}") from error


def _metadata(
    payload: Mapping[Any, Any],
    wrapper: str | None,
    state: Mapping[str, Tensor],
) -> dict[str, Any]:
    """Everything beside the weights, as plain values."""
    rest = {}
    for key, value in payload.items():
        # Without a wrapper the tensors stand between the other entries.
        is_weight = key == wrapper if wrapper is not None else key in state
        if not is_weight:
            rest[str(key)] = plain(value)
    return rest


def plain(value: Any) -> Any:
    """Metadata with stand-ins for dict-like and namespace-like objects replaced by plain dicts."""
    if isinstance(value, StandIn):
        if value.origin == "argparse.Namespace" and isinstance(
            value.state, dict
        ):
            return plain(value.state)
        return plain(value.mapping) if value.mapping else value
    if isinstance(value, Mapping):
        return {
            key: plain(item)
            for key, item in value.items()
            if not is_stand_in(key)
        }
    if type(value) in (list, tuple):
        return type(value)(plain(item) for item in value)
    return value


def _check_file(path: Path) -> None:
    if path.is_dir():
        if (path / "latest").exists() or (path / "checkpoint").is_dir():
            raise CheckpointError(
                f"{path} is a folder of DeepSpeed, which splits tensors in its own way; make one file of it first: "
                "from lightning.pytorch.utilities.deepspeed import convert_zero_checkpoint_to_fp32_state_dict"
            )
        raise CheckpointError(
            f"{path} is a folder, but neither a Hugging Face one (model.safetensors, pytorch_model.bin or an index of "
            "them) nor a sharded checkpoint (.metadata); name a file in it"
        )
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file")
    try:
        path.open("rb").close()
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be opened: {error.strerror}"
        ) from error


def _plain_tensor(tensor: Tensor) -> Tensor:
    """Without autograd history, hooks and subclass."""
    return tensor.detach().as_subclass(Tensor)
