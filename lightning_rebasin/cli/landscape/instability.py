"""``lightning-rebasin landscape instability``: from which step on a training is stable to the noise of SGD."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lightning_rebasin.cli import common, datasets, model
from lightning_rebasin.cli.landscape import job as jobs

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule

HELP = "fork a training at given steps: from which one on is it stable?"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.description = (
        "Trains the network, forks the training at given steps into two children that see the data in different\n"
        "orders, and measures the error barrier between them (Frankle et al. 2020).  Below 2 % a fork is stable:\n"
        "which connected region training ends in was decided by then.  Writes instability.json, instability.csv,\n"
        "instability.png, and the checkpoints of all runs in runs/: the same command with --force goes on where it\n"
        "was interrupted, and trains nothing again if forks or seeds are added."
    )
    parser.epilog = (
        "example:\n"
        "  lightning-rebasin landscape instability --module project.nets.Net --data project.data.Digits --forks 0 100 "
        "1000 --epochs 10 -o instability"
    )
    common.add_output_arguments(parser, "the folder to write into")
    parser.add_argument(
        "--forks",
        type=int,
        nargs="+",
        default=[0],
        metavar="STEP",
        help="steps at which to fork; 0 is initialisation (default: 0)",
    )
    parser.add_argument(
        "--epochs",
        type=int,
        default=10,
        help="epochs of a whole training (default: %(default)s)",
    )
    parser.add_argument(
        "--seeds",
        type=int,
        nargs="+",
        default=[0],
        metavar="SEED",
        help="one training for each of them (default: 0)",
    )
    parser.add_argument(
        "--metric",
        help="what instability is measured in (default: the first metric for which larger is better)",
    )
    parser.add_argument(
        "--threshold",
        type=float,
        default=0.02,
        help="stable is below it (default: %(default)s)",
    )
    parser.add_argument(
        "--points",
        type=int,
        default=11,
        help="number of λ (default: %(default)s)",
    )
    common.add_model_arguments(parser, spec=False)
    datasets.add_data_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Train, measure, draw, and print the table."""
    from lightning_rebasin.errors import ConfigurationError
    from lightning_rebasin.landscape import measure_instability
    from lightning_rebasin.merging.statistics import batch_norms
    from lightning_rebasin.plotting import require_matplotlib

    jobs.check_folder(args.output, force=args.force)
    require_matplotlib()
    make = _maker(args)
    network = make()
    data = datasets.load_data(args)
    if data.loader is None or data.validate is None:
        raise ConfigurationError(
            "training and measuring need data: give --data, or --config"
        )
    found = measure_instability(
        make,
        data.loader,
        data.validate,
        args.forks,
        max_epochs=args.epochs,
        seeds=args.seeds,
        metric=args.metric,
        threshold=args.threshold,
        points=args.points,
        batch_norm=data.train if batch_norms(network) else None,
        folder=jobs.make_folder(args.output) / "runs",
        progress=not args.no_progress,
    )
    found.to_json(args.output / "instability.json")
    found.to_csv(args.output / "instability.csv")
    found.plot(args.output / "instability.png")
    print(found)
    print(
        f"wrote instability.json, instability.csv and instability.png to {args.output}"
    )
    return 0


def _maker(args: argparse.Namespace) -> Callable[[], LightningModule]:
    """Makes the network of the options, from the state of the random generators when it is called."""
    import torch

    def make() -> Any:
        # The command's other networks come from --seed; these come from the seeds of the trainings.
        drawn = int(torch.randint(2**31, ()))
        chosen = argparse.Namespace(**{**vars(args), "seed": drawn})
        return model.build_model(chosen)

    return make
