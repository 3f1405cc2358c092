"""Folders of ``torch.distributed.checkpoint``: what FSDP and model-parallel trainings write, each rank its own part.

::

    .metadata       a pickle: tensor → shape and chunks; (tensor, offset) → file, first byte, length
    __0_0.distcp    the chunks of rank 0, each a small file of torch.save
    __1_0.distcp    those of rank 1
    meta.pt         what Lightning keeps beside the weights: hyper-parameters, its version, the state of the loops

Torch's own reader unpickles ``.metadata`` in full, which runs whatever is in it.  Here the restricted unpickler reads
it, and what it says is checked against the files before any memory is reserved.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_rebasin.checkpoints.guard import check_pickle
from lightning_rebasin.checkpoints.read_file import read_torch
from lightning_rebasin.checkpoints.unpickle import RestrictedUnpickler, StandIn
from lightning_rebasin.errors import CheckpointError

INDEX = ".metadata"
#: What Lightning calls the file with everything but the tensors.
REST = "meta.pt"
_SUFFIX = ".distcp"
_COPY = "copy the folder again, or use an older one"


@dataclass(frozen=True)
class Chunk:
    """A box of one tensor, and where it lies.

    Args:
        offset: First index along every axis.
        sizes: Length along every axis.
        file: Name of the file.
        begin: First byte.
        length: Number of bytes.
    """

    offset: tuple[int, ...]
    sizes: tuple[int, ...]
    file: str
    begin: int
    length: int


@dataclass(frozen=True)
class Entry:
    """One tensor of the folder.

    Args:
        name: Its name in the index.
        path: The keys under which it lay in the nested dict that was saved.
        dtype: Its dtype.
        shape: Its whole shape.
        chunks: Its parts.
    """

    name: str
    path: tuple[str, ...]
    dtype: torch.dtype
    shape: tuple[int, ...]
    chunks: tuple[Chunk, ...]

    @property
    def under(self) -> str:
        """The key of the dict that held it: ``("optimizer_0", "state", "w")`` lies under ``"optimizer_0.state"``."""
        return ".".join(self.path[:-1])


def is_distributed(path: Path) -> bool:
    """Whether a path is such a folder."""
    return (path / INDEX).is_file()


def distributed_files(path: Path) -> tuple[Path, ...]:
    """The files that hold the weights, the index first."""
    return (path / INDEX, *sorted(path.glob(f"*{_SUFFIX}")))


def read_rest(path: Path, *, unsafe: bool = False) -> Mapping[Any, Any]:
    """What Lightning keeps beside the tensors; empty without its file.

    Args:
        path: The folder.
        unsafe: Unpickle the file in full if torch's safe loader refuses it.

    Raises:
        CheckpointError: The file is damaged.
    """
    if not (path / REST).is_file():
        return {}
    rest = read_torch(path / REST, unsafe=unsafe)
    if not isinstance(rest, Mapping):
        raise CheckpointError(
            f"{path / REST} does not hold the dict that Lightning writes; {_COPY}"
        )
    return rest


def nested(entries: Sequence[Entry]) -> dict[str, Any]:
    """The dict that was saved, with tensors on the meta device.

    Example:
        >>> entry = Entry("model.w", ("model", "w"), torch.float32, (2,), ())
        >>> nested([entry])
        {'model': {'w': tensor(..., device='meta', size=(2,))}}
    """
    found: dict[str, Any] = {}
    for entry in entries:
        place = found.setdefault(entry.under, {}) if entry.under else found
        place[entry.path[-1]] = torch.empty(
            entry.shape, dtype=entry.dtype, device="meta"
        )
    return found


def read_index(path: Path) -> tuple[Entry, ...]:
    """The tensors of a folder.

    Raises:
        CheckpointError: ``.metadata`` is damaged, foreign, or promises what the files cannot hold.
    """
    index = path / INDEX
    check_pickle(index)
    try:
        with index.open("rb") as file:
            content = RestrictedUnpickler(file).load()
        return tuple(_entries(path, _state(content)))
    except CheckpointError:
        raise
    except (
        Exception
    ) as error:  # a damaged pickle may hold anything in the place of anything
        raise CheckpointError(
            f"{index} is damaged or not written by torch.distributed.checkpoint ({type(error).__name__}: {error}); "
            f"{_COPY}"
        ) from error


def load_chunks(path: Path, entry: Entry) -> Tensor:
    """Put one tensor together.

    Raises:
        CheckpointError: A chunk is missing, damaged or does not fit.
    """
    parts = [
        (chunk, _load_chunk(path, entry, chunk)) for chunk in entry.chunks
    ]
    if len(parts) == 1 and parts[0][0].sizes == entry.shape:
        return parts[0][1]
    whole = torch.empty(entry.shape, dtype=entry.dtype)
    for chunk, part in parts:
        window = whole
        for axis, (first, size) in enumerate(
            zip(chunk.offset, chunk.sizes, strict=True)
        ):
            window = window.narrow(axis, first, size)
        window.copy_(part)
    return whole


def _load_chunk(path: Path, entry: Entry, chunk: Chunk) -> Tensor:
    """One part, as it was saved."""
    with (path / chunk.file).open("rb") as file:
        file.seek(chunk.begin)
        data = file.read(chunk.length)
    try:
        part = torch.load(
            io.BytesIO(data), map_location="cpu", weights_only=True
        )
    except Exception as error:  # torch.load raises a dozen unrelated types
        raise CheckpointError(
            f"{path / chunk.file}: the part of tensor {entry.name!r} at byte {chunk.begin} is damaged; {_COPY}"
        ) from error
    fits = isinstance(part, Tensor) and tuple(part.shape) == chunk.sizes
    if not fits or part.dtype != entry.dtype:
        raise CheckpointError(
            f"{path / chunk.file}: the part of tensor {entry.name!r} at byte {chunk.begin} is not what {INDEX} says; "
            f"{_COPY}"
        )
    result: Tensor = part.detach()
    return result


def _entries(path: Path, content: Mapping[str, Any]) -> Iterator[Entry]:
    """All tensors of the index, each checked."""
    places = _places(path, content["storage_data"])
    paths = content.get("planner_data") or {}
    sizes = {
        file.name: file.stat().st_size for file in distributed_files(path)
    }
    for name, described in content["state_dict_metadata"].items():
        # What is not a tensor is pickled bytes, which nobody needs and of which the index says nothing.
        if isinstance(described, StandIn) and not described.state:
            continue
        state = _state(described)
        chunks = []
        for box in state["chunks"]:
            offset, lengths = (
                _ints(_state(box)[k]) for k in ("offsets", "sizes")
            )
            chunks.append(Chunk(offset, lengths, *places[name, offset]))
        keys = tuple(str(key) for key in paths.get(name, (name,)))
        dtype = state["properties"].state[0]
        entry = Entry(name, keys, dtype, _ints(state["size"]), tuple(chunks))
        _check(path, entry, sizes)
        yield entry


def _places(
    path: Path, table: Mapping[Any, Any]
) -> dict[tuple[str, tuple[int, ...]], tuple[str, int, int]]:
    """``(tensor, offset) → (file, first byte, length)``."""
    found = {}
    for key, value in table.items():
        index, info = _state(key), _state(value)
        if info.get("transform_descriptors"):
            raise CheckpointError(
                f"{path} is compressed or encrypted by an extension of torch.distributed.checkpoint: save it without"
            )
        place = (
            info["relative_path"],
            int(info["offset"]),
            int(info["length"]),
        )
        found[index["fqn"], _ints(index.get("offset") or ())] = place
    return found


def _check(path: Path, entry: Entry, sizes: Mapping[str, int]) -> None:
    """Refuse a tensor that the files cannot hold."""
    for chunk in entry.chunks:
        _check_file(path, entry, chunk, sizes)
        end = chunk.begin + chunk.length
        whole = (
            min(chunk.begin, chunk.length) >= 0 and end <= sizes[chunk.file]
        )
        held = math.prod(chunk.sizes) * entry.dtype.itemsize
        if not (_inside(entry, chunk) and whole and held <= chunk.length):
            raise CheckpointError(
                f"{path / chunk.file} is too short for tensor {entry.name!r}, or {INDEX} is wrong about it; {_COPY}"
            )
    covered = sum(math.prod(chunk.sizes) for chunk in entry.chunks)
    numbers = math.prod(entry.shape)
    if covered != numbers:
        raise CheckpointError(
            f"{path}: the parts of tensor {entry.name!r} hold {covered:,} of {numbers:,} numbers; was the folder "
            "written by fewer ranks than trained?"
        )


def _check_file(
    path: Path, entry: Entry, chunk: Chunk, sizes: Mapping[str, int]
) -> None:
    """Refuse a chunk that is in no file of the folder."""
    # A name with folders in it could point anywhere on the machine.
    if Path(chunk.file).name != chunk.file:
        raise CheckpointError(
            f"{path / INDEX} says that {entry.name!r} is in {chunk.file!r}, which is not the name of a file beside it; "
            "do not use it"
        )
    if chunk.file not in sizes:
        raise CheckpointError(
            f"{path / INDEX} says that {entry.name!r} is in {chunk.file}, which is not there; {_COPY}"
        )


def _inside(entry: Entry, chunk: Chunk) -> bool:
    """Whether a chunk is a box inside its tensor.

    Example: of a tensor (7, 3) the second rank of two has the box at (4, 0) of sizes (3, 3).
    """
    if not len(chunk.offset) == len(chunk.sizes) == len(entry.shape):
        return False
    boxes = zip(chunk.offset, chunk.sizes, entry.shape, strict=True)
    return all(
        0 <= first <= first + size <= length for first, size, length in boxes
    )


def _state(value: Any) -> Mapping[str, Any]:
    """The fields of a pickled dataclass."""
    fields = value.state if isinstance(value, StandIn) else None
    if not isinstance(fields, Mapping):
        raise TypeError(f"{value!r} has no fields")
    return fields


def _ints(values: Sequence[Any]) -> tuple[int, ...]:
    return tuple(int(value) for value in values)
