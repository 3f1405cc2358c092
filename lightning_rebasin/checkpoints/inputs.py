"""Several checkpoint files of one architecture, brought to the same names."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from lightning_rebasin.checkpoints.fallbacks import Fallbacks
from lightning_rebasin.checkpoints.folder import weight_files
from lightning_rebasin.checkpoints.names import fit_names, is_counter
from lightning_rebasin.checkpoints.read import Checkpoint, read_checkpoint

#: Every tensor must be there.
NO_FALLBACKS = Fallbacks()


def read_inputs(
    paths: Sequence[str | Path],
    expected: Collection[str] | None = None,
    *,
    weights: str = "state_dict",
    prefix: str | Mapping[str, str] | None = None,
    unsafe: bool = False,
    fallbacks: Fallbacks = NO_FALLBACKS,
    progress: bool = False,
) -> tuple[Checkpoint, ...]:
    """Read checkpoints and give their tensors the same names.

    Args:
        paths: The files.
        expected: The names of the model or spec; by default those of the first file.
        weights: Which weights of each file, as for :func:`read_checkpoint`.
        prefix: What to do with prefixes, as for :func:`read_checkpoint`.
        unsafe: Unpickle in full what torch's safe loader refuses.
        fallbacks: What stands in for tensors that a file may lack; each checkpoint says where that happened.
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
        names = expected
        if names is None:
            names = _names(checkpoint, found)
        found.append(_fitted(checkpoint, names, fallbacks))
    everything = (
        list(expected)
        if expected is not None
        else list(dict.fromkeys(n for c in found for n in c.state_dict))
    )
    return tuple(
        _with_counters(checkpoint, everything) for checkpoint in found
    )


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file; of a folder that of the digests of its weight files, in order."""
    digests = []
    for part in weight_files(path):
        with part.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def with_names(
    checkpoint: Checkpoint, names: Collection[str], fallbacks: Fallbacks
) -> Checkpoint:
    """A checkpoint that knows under which names some tensors that it lacks would be stored.

    Args:
        checkpoint: Names of its tensors differ from those in the file by a prefix at most.
        names: Second names of tied weights.
        fallbacks: Knows the other names.

    Example:
        A file holds ``net.embed.weight``, which the network calls ``embed.weight`` and uses as ``head.weight`` too:
        the latter's name in a file is ``net.head.weight``.
    """
    known = dict(checkpoint.names)
    for name in names:
        if name in known:
            continue
        others = [n for n in fallbacks.tied.get(name, ()) if n in known]
        prefix = ""
        if others:
            other = others[0]
            stored = known[other]
            prefix = stored.removesuffix(other) if stored != other else ""
        known[name] = prefix + name
    return replace(checkpoint, names=known)


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


def _fitted(
    checkpoint: Checkpoint, expected: Collection[str], fallbacks: Fallbacks
) -> Checkpoint:
    """A checkpoint under the names that are expected, with what stands in for the tensors that it lacks."""
    names = fit_names(
        list(checkpoint.state_dict),
        expected,
        str(checkpoint.path),
        fallbacks.names,
    )
    state = {new: checkpoint.state_dict[old] for new, old in names.items()}
    filled = fallbacks.fill(state, tuple(expected))
    return replace(
        checkpoint,
        state_dict=state | filled,
        names={new: checkpoint.names[old] for new, old in names.items()},
        filled=tuple(filled),
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
