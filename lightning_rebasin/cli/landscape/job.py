"""What the commands of ``landscape`` share: checkpoints of one network, data to measure on, a folder for results."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from lightning_rebasin.cli import common, datasets, metrics
from lightning_rebasin.errors import ConfigurationError, OutputError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lightning_rebasin.checkpoints import Checkpoint


@final
@dataclass(frozen=True)
class Job:
    """What a command works on.

    Args:
        module: The network.
        files: Its checkpoints, in the order of the command line.
        data: Training batches.
        held_out: The validation loader.
        loss: Measures a module that is not a LightningModule; ``None`` means ``validation_step``.
        progress: Whether bars are shown.
        limit: Use only so many validation batches.
    """

    module: nn.Module
    files: tuple[Checkpoint, ...]
    data: datasets.Data
    held_out: Iterable[Any]
    loss: Callable[[nn.Module, Any], Any] | None
    progress: bool
    limit: int | None

    @property
    def states(self) -> list[Mapping[str, Tensor]]:
        """The weights of every checkpoint."""
        return [file.state_dict for file in self.files]

    @property
    def measuring(self) -> dict[str, Any]:
        """Keyword arguments of every measurement."""
        from lightning_rebasin.merging.statistics import batch_norms

        return {
            "loss": self.loss,
            "batch_norm": self.data.train
            if batch_norms(self.module)
            else None,
            "limit_batches": self.limit,
            "progress": self.progress,
        }


def add_arguments(parser: argparse.ArgumentParser, files: str) -> None:
    """Declare checkpoints, network, data, matching and output.

    Args:
        parser: The parser of the command.
        files: What the checkpoints are.
    """
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help=files
    )
    common.add_output_arguments(parser, "the folder to write into")
    parser.add_argument(
        "--metric", help="which metric to draw (default: the first loss)"
    )
    parser.add_argument(
        "--limit", type=int, metavar="N", help="use only N validation batches"
    )
    common.add_model_arguments(parser)
    datasets.add_data_arguments(parser)
    common.add_file_arguments(parser)


def add_match_argument(
    parser: argparse.ArgumentParser, what: str, *, kinds: bool = False
) -> None:
    """Declare ``--match``.

    Args:
        parser: The parser of the command.
        what: What is matched to what.
        kinds: Whether other symmetries than permutations can be asked for.
    """
    parser.add_argument(
        "--match", action="store_true", help=f"match weights first: {what}"
    )
    if kinds:
        common.add_kinds_argument(parser)


def read_job(
    args: argparse.Namespace, counts: Sequence[int] | None = None
) -> Job:
    """Read everything a command needs, after checking that the results can be written.

    Args:
        args: Parsed options of :func:`add_arguments`.
        counts: How many checkpoints there may be; ``None`` is two or more.

    Raises:
        ConfigurationError: There is no network, no data, or the wrong number of files.
        OutputError: The output exists.
        CheckpointError: A file cannot be read.
        StateDictError: A file does not fit the network.
    """
    from lightning_rebasin.checkpoints.inputs import read_inputs
    from lightning_rebasin.plotting import require_matplotlib

    _check_count(len(args.files), counts)
    # A folder with an interrupted training is not empty.
    resumed = getattr(args, "resume", False)
    check_folder(args.output, force=args.force or resumed)
    require_matplotlib()
    reading = common.reading_options(args)
    first = read_inputs(args.files[:1], **reading)[0]
    module = common.load_module(args, first)
    data = datasets.load_data(args)
    if module is None or data.validate is None:
        raise ConfigurationError(
            "measuring runs the network on data: give --module and --data, or --config"
        )
    files = read_inputs(
        args.files,
        module.state_dict(),
        progress=not args.no_progress,
        **reading,
    )
    loss = metrics.loss_of(module)
    metrics.check_loader(data.validate)
    metrics.check_fits(module, data.validate, loss, args.metric)
    return Job(
        module,
        files,
        data,
        data.validate,
        loss,
        progress=not args.no_progress,
        limit=args.limit,
    )


def matched_to_the_first(
    args: argparse.Namespace, job: Job
) -> list[Mapping[str, Tensor]]:
    """The weights in one gauge, all but the first aligned to be near to it."""
    from lightning_rebasin.matching import match_weights

    first, *others = job.states
    spec = common.load_spec(args, job.module, job.data.train)
    found = [first]
    for state in others:
        pinned = spec.pin_identical_buffers(first, state)
        match = match_weights(
            pinned, first, state, seed=args.seed, progress=job.progress
        )
        found.append(match.transform.apply(state))
    # What is found leads to the first in canonical gauge, which is the same function.
    found[0] = spec.canonicalise(first)
    return found


def layers_by_hand(
    given: Sequence[str] | None,
) -> dict[str, list[str]] | None:
    """The layers of ``--layer NAME=PART,...``; ``None`` without the option.

    Raises:
        ConfigurationError: Not of this form, or one name twice.

    Example:
        >>> layers_by_hand(["stem=conv1,bn1", "head=fc"])
        {'stem': ['conv1', 'bn1'], 'head': ['fc']}
    """
    found: dict[str, list[str]] = {}
    for item in given or ():
        name, sign, parts = item.partition("=")
        if not (name and sign and parts) or name in found:
            raise ConfigurationError(
                f"--layer {item}: write NAME=PART,... and each name once, for instance stem=conv1,bn1"
            )
        found[name] = parts.split(",")
    return found or None


def check_folder(path: Path, *, force: bool) -> None:
    """Raise before anything is computed if the results have no place.

    Raises:
        OutputError: There is a file of this name, a folder with something in it (without ``force``), or no folder that
            it could be made in.
    """
    if path.exists() and not path.is_dir():
        raise OutputError(
            f"{path} is a file; -o names the folder to write into"
        )
    if path.is_dir() and any(path.iterdir()) and not force:
        raise OutputError(
            f"the folder {path} is not empty; choose another name, or overwrite files in it with --force"
        )
    if not path.parent.is_dir():
        raise OutputError(
            f"the folder {path.parent} does not exist; create it first"
        )


def make_folder(path: Path) -> Path:
    """Make the folder of the results.

    Raises:
        OutputError: It cannot be made.
    """
    try:
        path.mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"cannot make the folder {path}: {error.strerror or error}"
        ) from error
    return path


def _check_count(given: int, counts: Sequence[int] | None) -> None:
    if counts is None:
        if given < 2:
            raise ConfigurationError(
                f"this command needs two checkpoints or more, got {given}"
            )
    elif given not in counts:
        allowed = " or ".join(str(count) for count in counts)
        raise ConfigurationError(
            f"this command needs {allowed} checkpoints, got {given}"
        )
