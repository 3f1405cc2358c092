"""Snapshots of a training run in a folder: weights at chosen steps, and an index that says which.

The index (``index.json``) is the truth: a file that is not in it does not exist, and it is rewritten atomically after
each file.  A folder therefore survives a kill at any moment.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from lightning_rebasin.checkpoints import read_checkpoint
from lightning_rebasin.errors import CheckpointError
from lightning_rebasin.files import atomic_write_text

FORMAT = "lightning-rebasin-snapshots"
VERSION = 1
INDEX = "index.json"
#: Which snapshots stay when there are too many.
Keep = Literal["newest", "spread"]


@dataclass(frozen=True)
class Snapshot:
    """Weights of a run at one step.

    Args:
        step: Number of optimizer steps taken (``trainer.global_step``).
        epoch: Number of the epoch, from 0.
        path: The file.
    """

    step: int
    epoch: int
    path: Path

    def state_dict(self) -> dict[str, Tensor]:
        """Read the weights.

        Raises:
            CheckpointError: The file is missing or damaged.
        """
        return dict(read_checkpoint(self.path).state_dict)


def load_trajectory(folder: str | Path) -> Iterator[Snapshot]:
    """The snapshots of a run in the order of their steps; the weights are read on demand.

    Args:
        folder: The folder that :class:`~lightning_rebasin.CheckpointSnapshot` wrote.

    Yields:
        One snapshot after the other.

    Raises:
        CheckpointError: The folder has no index, or the index is damaged or names a file that is missing.
    """
    for snapshot in read_index(folder):
        if not snapshot.path.is_file():
            raise CheckpointError(
                f"{snapshot.path} is in the index but missing; restore it or take it out of {INDEX}"
            )
        yield snapshot


def read_index(folder: str | Path) -> tuple[Snapshot, ...]:
    """What the index of a folder says, by step; see :func:`load_trajectory`."""
    path = Path(folder) / INDEX
    try:
        data: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{folder} is not a snapshot folder: it has no {INDEX} (see CheckpointSnapshot)"
        ) from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    if (
        not isinstance(data, dict)
        or data.get("format") != FORMAT
        or data.get("version") != VERSION
    ):
        raise CheckpointError(
            f"{path} is not an index of snapshots, or of another version"
        )
    try:
        found = [
            Snapshot(
                int(s["step"]),
                int(s["epoch"]),
                _inside(Path(folder), s["file"]),
            )
            for s in data["snapshots"]
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: {error!r}") from error
    return tuple(sorted(found, key=lambda s: s.step))


def write_index(folder: Path, snapshots: Sequence[Snapshot]) -> None:
    """Replace the index of a folder, atomically.

    Raises:
        OutputError: The folder cannot be written.
    """
    entries = [
        {"step": s.step, "epoch": s.epoch, "file": s.path.name}
        for s in sorted(snapshots, key=lambda s: s.step)
    ]
    text = json.dumps(
        {"format": FORMAT, "version": VERSION, "snapshots": entries}, indent=1
    )
    atomic_write_text(folder / INDEX, text + "\n")


def surplus(
    snapshots: Sequence[Snapshot], limit: int | None, keep: Keep
) -> tuple[Snapshot, ...]:
    """Which snapshots have to go so that ``limit`` remain.

    ``"newest"`` drops the oldest.  ``"spread"`` keeps the first and the last and drops, one by one, the snapshot whose
    neighbours are closest together, so that the whole run stays covered.

    Example:
        >>> run = [Snapshot(step, 0, Path(f"{step}")) for step in (0, 10, 11, 20, 30)]
        >>> [s.step for s in surplus(run, 3, "newest")], [s.step for s in surplus(run, 4, "spread")]
        ([0, 10], [11])
    """
    kept = sorted(snapshots, key=lambda s: s.step)
    gone: list[Snapshot] = []
    while limit is not None and len(kept) > limit:
        if keep == "newest" or len(kept) < 3:
            index = 0
        else:
            index = min(
                range(1, len(kept) - 1),
                key=lambda i: kept[i + 1].step - kept[i - 1].step,
            )
        gone.append(kept.pop(index))
    return tuple(gone)


def _inside(folder: Path, name: str) -> Path:
    """A file of the folder itself: an index must not point anywhere else."""
    if not re.fullmatch(r"[\w=.-]+", name) or name.startswith("."):
        raise ValueError(f"unexpected file name {name!r}")
    return folder / name
