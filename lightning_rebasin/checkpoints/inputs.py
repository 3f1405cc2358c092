"""Several checkpoint files of one architecture, brought to the same names."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from lightning_rebasin.checkpoints.names import fit_names, is_counter
from lightning_rebasin.checkpoints.read import Checkpoint, read_checkpoint


def read_inputs(
    paths: Sequence[str | Path],
    expected: Collection[str] | None = None,
    *,
    weights: str = "state_dict",
    prefix: str | Mapping[str, str] | None = None,
    unsafe: bool = False,
    progress: bool = False,
) -> tuple[Checkpoint, ...]:
    """Read checkpoints and give their tensors the same names.

    Args:
        paths: The files.
        expected: The names of the model or spec; by default those of the first file.
        weights: Which weights of each file, as for :func:`read_checkpoint`.
        prefix: What to do with prefixes, as for :func:`read_checkpoint`.
        unsafe: Unpickle in full what torch's safe loader refuses.
        progress: Show a progress bar.

    Returns:
        One checkpoint per file.  Batch counters that old files lack are zero, as PyTorch itself loads such files.

    Raises:
        CheckpointError: A file cannot be read.
        StateDictError: A file has other tensors.
    """
    found: list[Checkpoint] = []
    for path in tqdm(paths, desc="reading", unit="file", disable=not progress):
        checkpoint = read_checkpoint(
            path, weights=weights, prefix=prefix, unsafe=unsafe
        )
        found.append(
            _fitted(
                checkpoint,
                expected
                if expected is not None
                else _names(checkpoint, found),
            )
        )
    everything = (
        list(expected)
        if expected is not None
        else list(dict.fromkeys(n for c in found for n in c.state_dict))
    )
    return tuple(
        _with_counters(checkpoint, everything) for checkpoint in found
    )


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _names(
    checkpoint: Checkpoint, before: Sequence[Checkpoint]
) -> Collection[str]:
    """The names of the first file; batch counters are optional."""
    first = before[0] if before else checkpoint
    counters = [
        name
        for name in checkpoint.state_dict
        if is_counter(name) and name not in first.state_dict
    ]
    return [*first.state_dict, *counters]


def _fitted(checkpoint: Checkpoint, expected: Collection[str]) -> Checkpoint:
    names = fit_names(
        list(checkpoint.state_dict), expected, str(checkpoint.path)
    )
    return replace(
        checkpoint,
        state_dict={
            new: checkpoint.state_dict[old] for new, old in names.items()
        },
        names={new: checkpoint.names[old] for new, old in names.items()},
    )


def _with_counters(checkpoint: Checkpoint, names: Sequence[str]) -> Checkpoint:
    zero: dict[str, Tensor] = {
        n: torch.tensor(0)
        for n in names
        if is_counter(n) and n not in checkpoint.state_dict
    }
    state = {**checkpoint.state_dict, **zero}
    return replace(
        checkpoint,
        state_dict={name: state[name] for name in names if name in state},
    )
