"""What an unfinished merge leaves beside its target, so that the same command goes on after a kill.

Beside ``OUT`` stands a hidden folder until the merge is over::

    .OUT.unfinished/job.json      what was asked, and of which files
    .OUT.unfinished/match-1.pt    where the matching of the second model stands
    .OUT.unfinished/output/       finished files of the output, if that is a folder

Every file in it appears whole or not at all.  If ``job.json`` says something else than what is asked now (another
option, a file that changed), all of it is thrown away.  Small models are merged sooner than anybody could go on: they
leave nothing.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from lightning_rebasin.checkpoints.folder import weight_files
from lightning_rebasin.errors import CheckpointError, OutputError
from lightning_rebasin.files import atomic_path, atomic_write_text
from lightning_rebasin.matching.search.journal import Ended, Standing
from lightning_rebasin.symmetry import PermutationSpec
from lightning_rebasin.version import __version__

#: Bytes of a model from which a merge can go on after a kill.
LARGE = 384 * 2**20
#: Seconds between two entries of a journal.
PAUSE = 5.0


@final
class Unfinished:
    """The folder of one merge.

    Args:
        target: What is to be written.
        job: What was asked: plain JSON values.

    Raises:
        OutputError: The folder cannot be made.
    """

    def __init__(self, target: Path, job: Mapping[str, Any]) -> None:
        self.folder = target.parent / f".{target.name}.unfinished"
        #: Whether an earlier process left something to go on from.
        self.found = _read(self.folder / "job.json") == job
        try:
            if not self.found:
                shutil.rmtree(self.folder, ignore_errors=True)
            self.output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"cannot write {self.folder}: {error.strerror or error}"
            ) from error
        # A process that was killed while it wrote a file left it under a temporary name.
        for left in [*self.folder.glob(".*.tmp"), *self.output.glob(".*.tmp")]:
            left.unlink()
        if not self.found:
            atomic_write_text(self.folder / "job.json", json.dumps(job))

    @property
    def output(self) -> Path:
        """Where the output folder is built."""
        return self.folder / "output"

    def journal(self, number: int) -> FileJournal:
        """The journal of the matching of one model."""
        return FileJournal(self.folder / f"match-{number}.pt")

    def remove(self) -> None:
        """The merge is over."""
        shutil.rmtree(self.folder, ignore_errors=True)


@final
class FileJournal:
    """Keeps in a file where a matching stands.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._next = time.monotonic() + PAUSE

    @property
    def due(self) -> bool:
        """Whether the last entry is some seconds old."""
        return time.monotonic() >= self._next

    def read(self) -> Standing | None:
        """The last entry.

        Raises:
            CheckpointError: The file is damaged.
        """
        if not self._path.exists():
            return None
        try:
            with self._path.open("rb") as file:
                entry = torch.load(file, weights_only=True)
        except Exception as error:  # torch.load raises a dozen unrelated types on damaged files
            raise CheckpointError(
                f"{self._path} is damaged ({error}); remove the folder {self._path.parent} to begin again"
            ) from error
        ended = [Ended(*values) for values in entry.pop("ended")]
        duals = {}
        for group, (prices, held) in entry.pop("duals").items():
            duals[group] = (prices.numpy(), held.numpy())
        return Standing(ended=tuple(ended), duals=duals, **entry)

    def write(self, standing: Standing) -> None:
        """Replace the entry."""
        entry = dict(vars(standing))
        entry["ended"] = [tuple(vars(end).values()) for end in standing.ended]
        duals = {}
        for group, (prices, held) in standing.duals.items():
            duals[group] = (torch.from_numpy(prices), torch.from_numpy(held))
        entry["duals"] = duals
        with (
            atomic_path(self._path) as temporary,
            temporary.open("wb") as file,
        ):
            torch.save(entry, file)
        self._next = time.monotonic() + PAUSE


def unfinished(
    target: Path,
    paths: Sequence[Path],
    states: Sequence[Mapping[str, Tensor]],
    spec: PermutationSpec | None,
    asked: Mapping[str, Any],
) -> Unfinished | None:
    """The folder of a merge or a matching, if its models are large.

    Args:
        target: What is to be written.
        paths: The inputs.
        states: Their weights.
        spec: What may be permuted.
        asked: Options on which the result depends.

    Returns:
        ``None`` for models below :data:`LARGE`.
    """
    size = sum(tensor.nbytes for tensor in states[0].values())
    if size < LARGE:
        return None
    return Unfinished(target, _job(paths, spec, asked))


def _job(
    paths: Sequence[Path],
    spec: PermutationSpec | None,
    asked: Mapping[str, Any],
) -> dict[str, Any]:
    """Everything on which the result depends, in few words."""
    files = []
    for path in paths:
        for file in weight_files(path):
            found = file.stat()
            files.append(
                [str(file.resolve()), found.st_size, found.st_mtime_ns]
            )
    moved = "" if spec is None else json.dumps(spec.to_dict(), sort_keys=True)
    return {
        "version": __version__,
        "options": {name: str(value) for name, value in asked.items()},
        "files": files,
        "spec": hashlib.sha256(moved.encode()).hexdigest(),
    }


def _read(file: Path) -> Any:
    """A job that was written before; ``None`` if there is none."""
    with suppress(OSError, ValueError):
        return json.loads(file.read_text(encoding="utf-8"))
    return None
