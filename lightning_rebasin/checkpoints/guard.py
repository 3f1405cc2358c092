"""What is looked at before a checkpoint file is opened in earnest.

The containers in use (zip since torch 1.6, bare pickles before, tar before that) can each lie about themselves: a zip
of a kilobyte may claim a terabyte, a tar member may be a link or a pipe, a pickle may nest tuples so deep that hashing
one overflows the interpreter's stack.  Each check reads a few headers only.
"""

from __future__ import annotations

import io
import pickletools
import tarfile
import zipfile
from pathlib import Path
from typing import IO, Any, Literal

from torch import Tensor

from lightning_rebasin.checkpoints.unpickle import MAX_DEPTH
from lightning_rebasin.errors import CheckpointError

Container = Literal["zip", "pickle", "tar"]
_MAX_EXPANSION = 20
_ROOM = 64 * 2**20
_LEGACY_PICKLES = 5
_ADD_TO_TARGET = frozenset(
    {"APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"}
)
_PUT = frozenset({"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"})
_GET = frozenset({"GET", "BINGET", "LONG_BINGET"})


def check_container(path: Path) -> Container:
    """Which kind of torch file this is, after refusing the hostile and the foreign ones.

    Raises:
        CheckpointError: The file is empty, truncated, not written by torch, or built to do harm.
    """
    if path.stat().st_size == 0:
        raise CheckpointError(
            f"{path} is empty; was the run that wrote it interrupted?"
        )
    with path.open("rb") as file:
        start = file.read(4)
        file.seek(0)
        if start[:2] == b"PK":
            _check_zip(path)
            return "zip"
        if not start.startswith(b"\x80") and tarfile.is_tarfile(path):
            _check_tar(path)
            return "tar"
        if not start.startswith(b"\x80"):
            raise CheckpointError(
                f"{path} is not a file written by torch.save or Lightning (it begins with {start!r})"
            )
        for _ in range(
            _LEGACY_PICKLES - 1
        ):  # magic number, protocol, system, the object
            _check_depth(path, file)
    return "pickle"


def check_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Raise if a tensor claims much more memory than the file holds.

    Raises:
        CheckpointError: A view repeats its few stored numbers into something huge.
    """
    limit = _limit(path)
    for name, tensor in tensors.items():
        if tensor.numel() * tensor.element_size() > limit:
            raise CheckpointError(
                f"{path}: tensor {name!r} claims {tensor.numel():,} numbers, far more than the file holds"
            )


def check_pickle(path: Path) -> None:
    """Refuse a file that is no single pickle, or one that nests too deep.

    Raises:
        CheckpointError: The file is empty, truncated or built to do harm.
    """
    if path.stat().st_size == 0:
        raise CheckpointError(
            f"{path} is empty; was the run that wrote it interrupted?"
        )
    with path.open("rb") as file:
        _check_depth(path, file)


def _check_zip(path: Path) -> None:
    names, claimed, pickled = _look_into_zip(path)
    if claimed > _limit(path):
        raise CheckpointError(
            f"{path} would unpack to {claimed:,} bytes; it is built to fill memory, do not use it"
        )
    if "constants.pkl" in names:
        raise CheckpointError(
            f"{path} is a TorchScript archive, which holds code; save the model's state dict instead: "
            "torch.save(torch.jit.load(path).state_dict(), 'weights.pt')"
        )
    # Since torch 2.8, and before.
    if {"models/model.json", "serialized_exported_program.json"} & set(names):
        raise CheckpointError(
            f"{path} is an exported program (torch.export, .pt2), whose weights belong to a fixed graph; merge the "
            "checkpoints it was exported from, and export the result: "
            "torch.export.save(torch.export.export(model, inputs), path)"
        )
    if pickled is None:
        raise CheckpointError(
            f"{path} is a zip archive, but not one written by torch.save"
        )
    _check_depth(path, io.BytesIO(pickled))


def _look_into_zip(path: Path) -> tuple[set[str], int, bytes | None]:
    """Names in the archive (in its one folder, if any), claimed size of everything, and the pickle if not absurd."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {}
            for entry in archive.infolist():
                # Old exported programs have no folder.
                _, folder, inside = entry.filename.partition("/")
                entries[inside if folder else entry.filename] = entry
            claimed = sum(entry.file_size for entry in archive.infolist())
            readable = "data.pkl" in entries and claimed <= _limit(path)
            return (
                set(entries),
                claimed,
                archive.read(entries["data.pkl"]) if readable else None,
            )
    except Exception as error:  # zipfile raises half a dozen unrelated types on damaged archives
        raise CheckpointError(
            f"{path} is a truncated or damaged zip archive ({error}); copy it again, or use an older one"
        ) from error


def _limit(path: Path) -> int:
    """What a file may claim to hold: weights hardly compress."""
    return max(_MAX_EXPANSION * path.stat().st_size, _ROOM)


def _check_tar(path: Path) -> None:
    try:
        with tarfile.open(path, "r:") as archive:
            members = archive.getmembers()
    except Exception as error:
        raise CheckpointError(
            f"{path} is a damaged tar archive ({error})"
        ) from error
    if not {"storages", "tensors", "pickle"} <= {
        member.name for member in members
    }:
        raise CheckpointError(
            f"{path} is a tar archive, but not one written by torch.save"
        )
    odd = [member.name for member in members if not member.isreg()]
    if odd:
        raise CheckpointError(
            f"{path}: the member {odd[0]!r} is not a plain file; do not use it"
        )


def _check_depth(path: Path, file: IO[bytes]) -> None:
    """Follow one pickle without building anything; refuse it if containers nest too deep."""
    if _depth(path, file) > MAX_DEPTH:
        raise CheckpointError(
            f"{path}: its pickle nests more than {MAX_DEPTH} deep; do not use it"
        )


def _depth(path: Path, file: IO[bytes]) -> int:
    """Depth of the first container that nests too deep, or of the deepest."""
    stack: list[int | None] = []  # depth of each object; None is the mark
    memo: dict[int, int] = {}
    deepest = 0
    try:
        for opcode, argument, _ in pickletools.genops(file):
            deepest = max(deepest, _step(opcode, argument, stack, memo))
            if deepest > MAX_DEPTH:
                break
    except Exception as error:  # so does pickletools on damaged pickles
        raise CheckpointError(
            f"{path} is truncated or damaged ({error}); copy it again, or use an older one"
        ) from error
    return deepest


def _step(
    opcode: Any, argument: Any, stack: list[int | None], memo: dict[int, int]
) -> int:
    """Apply one opcode to the stack of depths; the depth of what it made."""
    name = opcode.name
    if name == "MARK":
        stack.append(None)
        return 0
    if name in _PUT:
        memo[len(memo) if argument is None else argument] = stack[-1] or 0
        return 0
    if name in _GET:
        stack.append(memo[argument])
        return 0
    if name == "DUP":
        stack.append(stack[-1])
        return 0
    taken = _take(opcode, stack)
    depth = 1 + max(taken, default=-1)
    if name in _ADD_TO_TARGET:  # a list does not get deeper with every item
        depth = max(taken[0], 1 + max(taken[1:], default=0))
    stack.extend(depth for _ in opcode.stack_after)
    return depth if opcode.stack_after else 0


def _take(opcode: Any, stack: list[int | None]) -> list[int]:
    """Pop what the opcode uses, oldest first."""
    before = [item.name for item in opcode.stack_before]
    taken: list[int] = []
    if "mark" in before:
        while (top := stack.pop()) is not None:
            taken.append(top)
        before = before[: before.index("mark")]
    taken.extend(stack.pop() or 0 for _ in before)
    return taken[::-1]
