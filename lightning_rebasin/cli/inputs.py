"""``lightning-rebasin inputs``: the loss of checkpoints between inputs of one class."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_rebasin.cli import common, datasets

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lightning_rebasin.inputs import InputPaths

HELP = "measure and draw the loss of checkpoints between inputs of one class, and connect them"
#: Validation inputs that are looked at to find pairs, for each pair that is wanted.
_CANDIDATES = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.description = (
        "Takes pairs of validation inputs of one class that every checkpoint classifies well, and prints the highest\n"
        "loss on the straight way between them; with --connect also on a path of low loss that is found by moving\n"
        "the highest point aside.  The network is run by its forward, as a classifier (cross-entropy in nats)."
    )
    parser.epilog = (
        "example:\n"
        "  lightning-rebasin inputs a.ckpt b.ckpt --module project.models.Net --data project.data.Digits --connect "
        "-o paths.png"
    )
    parser.add_argument(
        "files",
        type=Path,
        nargs="+",
        metavar="CKPT",
        help="checkpoints of one network; all are measured on the same pairs",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="OUT",
        help="file to write: a picture of the first checkpoint's highest pairs (.png, .pdf, .svg), .csv or .json",
    )
    parser.add_argument(
        "--force", action="store_true", help="overwrite OUT if it exists"
    )
    parser.add_argument(
        "--pairs",
        type=int,
        default=20,
        metavar="N",
        help="number of pairs (default: %(default)s)",
    )
    parser.add_argument(
        "--points",
        type=int,
        default=51,
        help="number of λ on each straight piece (default: %(default)s)",
    )
    parser.add_argument(
        "--connect",
        action="store_true",
        help="also find paths of low loss",
    )
    parser.add_argument(
        "--threshold",
        type=float,
        default=0.5,
        metavar="LOSS",
        help="inputs count as connected at or below this loss, and are chosen below it (default: %(default)s)",
    )
    parser.add_argument(
        "--pieces",
        type=int,
        default=8,
        metavar="N",
        help="straight pieces that a path may have (default: %(default)s)",
    )
    parser.add_argument(
        "--limit",
        type=int,
        metavar="N",
        help="use only N validation batches",
    )
    parser.add_argument(
        "--no-progress", action="store_true", help="no progress bars"
    )
    common.add_json_argument(parser)
    common.add_model_arguments(parser, spec=False)
    datasets.add_data_arguments(parser)
    common.add_file_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Measure, connect, print and draw."""
    from lightning_rebasin.checkpoints.inputs import read_inputs
    from lightning_rebasin.checkpoints.write import check_target
    from lightning_rebasin.errors import ConfigurationError

    if args.pairs < 1:
        raise ConfigurationError(
            f"--pairs must be at least 1, got {args.pairs}"
        )
    if args.output:
        check_target(args.output, force=args.force)
        common.check_format(args.output)
    reading = common.reading_options(args)
    module = common.load_module(
        args, read_inputs([args.files[0]], **reading)[0]
    )
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
    states = [file.state_dict for file in files]
    pairs = _pairs(args, module, states, data)
    found: dict[str, dict[str, InputPaths]] = {}
    for file, state in zip(args.files, states, strict=True):
        module.load_state_dict(state)
        found[str(file)] = _measured(args, module, pairs)
    common.keep_result(args, _content(found))
    _print(found, args.threshold)
    if args.output:
        _write(args.output, found)
        print(f"wrote {args.output}")
    return 0


def _pairs(
    args: argparse.Namespace,
    module: nn.Module,
    states: Sequence[Mapping[str, Tensor]],
    data: datasets.Data,
) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs within classes of inputs that every checkpoint is sure of."""
    from lightning_rebasin.errors import DataError
    from lightning_rebasin.inputs import input_losses
    from lightning_rebasin.inputs.pairing import within_classes

    inputs, classes = _candidates(args, data)
    for state in states:
        module.load_state_dict(state)
        low = input_losses(module, inputs, classes) <= args.threshold
        inputs, classes = inputs[low], classes[low]
        if not len(inputs):
            raise DataError(
                f"no validation input has a loss of {args.threshold:g} or less for every checkpoint: do the labels fit "
                "the network? Raise --threshold, or --limit"
            )
    a, b = within_classes(classes, args.pairs)
    return inputs[a], inputs[b], classes[a]


def _candidates(
    args: argparse.Namespace, data: datasets.Data
) -> tuple[Tensor, Tensor]:
    """Validation inputs with their classes, enough to choose from."""
    import torch

    from lightning_rebasin.errors import DataError

    assert data.validate is not None
    inputs: list[Tensor] = []
    classes: list[Tensor] = []
    count = 0
    for batch in islice(data.validate, args.limit):
        labelled = isinstance(batch, tuple | list) and len(batch) >= 2
        if not labelled or not all(
            isinstance(x, torch.Tensor) for x in batch[:2]
        ):
            raise DataError(
                f"pairs are made of batches (inputs, classes), and --data gives a {type(batch).__name__}"
            )
        inputs.append(batch[0])
        classes.append(batch[1])
        count += len(batch[0])
        if count >= _CANDIDATES * args.pairs:
            break
    if not inputs:
        raise DataError("--data gives no validation batch")
    return torch.cat(inputs), torch.cat(classes)


def _measured(
    args: argparse.Namespace,
    module: nn.Module,
    pairs: tuple[Tensor, Tensor, Tensor],
) -> dict[str, InputPaths]:
    """The paths of one checkpoint, by label."""
    from lightning_rebasin.inputs import connect_inputs, input_barrier

    progress = not args.no_progress
    found = {
        "straight": input_barrier(
            module, *pairs, points=args.points, progress=progress
        )
    }
    if args.connect:
        found["connected"] = connect_inputs(
            module,
            *pairs,
            threshold=args.threshold,
            points=args.points,
            max_pieces=args.pieces,
            seed=args.seed,
            progress=progress,
        )
    return found


def _print(
    found: Mapping[str, Mapping[str, InputPaths]], threshold: float
) -> None:
    """One row per checkpoint and kind of path."""
    width = max(len(name) for name in found)
    print(
        f"{'':<{width}}  {'path':<9}  {'pairs':>5}  {'mean max':>9}  {'worst':>9}  {'connected':>9}  {'pieces':>6}"
    )
    for name, own in found.items():
        for label, paths in own.items():
            maxima = paths.maxima
            share = sum(paths.connected(threshold)) / len(paths)
            pieces = sum(path.pieces for path in paths) / len(paths)
            print(
                f"{name:<{width}}  {label:<9}  {len(paths):>5}  {sum(maxima) / len(maxima):>9.4f}  "
                f"{max(maxima):>9.4f}  {share:>9.0%}  {pieces:>6.2f}"
            )


def _write(path: Path, found: Mapping[str, Mapping[str, Any]]) -> None:
    """Everything as JSON or CSV, or a picture of the first checkpoint."""
    if path.suffix == ".json":
        common.write_json(path, _content(found))
    elif path.suffix == ".csv":
        from lightning_rebasin.landscape.tables import write_csv

        header = ["checkpoint", "path", "pair", "lambda", "loss"]
        write_csv(path, header, _rows(found))
    else:
        from lightning_rebasin.plotting import plot_inputs

        name, own = next(iter(found.items()))
        maxima = own["straight"].maxima
        worst = sorted(range(len(maxima)), key=lambda i: -maxima[i])
        plot_inputs(own, pairs=worst[:3], path=path, title=name)


def _content(
    found: Mapping[str, Mapping[str, InputPaths]],
) -> dict[str, dict[str, Any]]:
    """Every path of every checkpoint, by file and label."""
    content = {}
    for name, own in found.items():
        content[name] = {k: paths.to_dict() for k, paths in own.items()}
    return content


def _rows(
    found: Mapping[str, Mapping[str, InputPaths]],
) -> list[tuple[str, str, int, float, float]]:
    """One row per checkpoint, path, pair and λ."""
    rows = []
    for name, own in found.items():
        for label, paths in own.items():
            for pair, path in enumerate(paths):
                for lam, loss in zip(path.lambdas, path.losses, strict=True):
                    rows.append((name, label, pair, lam, loss))
    return rows
