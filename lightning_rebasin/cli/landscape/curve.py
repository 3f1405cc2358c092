"""``lightning-rebasin landscape curve``: a learned path of low loss through checkpoints."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_rebasin.cli.landscape import job as jobs
from lightning_rebasin.cli.landscape import training

if TYPE_CHECKING:
    from lightning_rebasin.modules import CurveModule

HELP = "learn a path of low loss between two checkpoints or more"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.description = (
        "Trains the bends of a curve through the checkpoints, in their order, by the network's own training_step at\n"
        "random points of it (Garipov et al. 2018), and measures everything that validation_step logs along the curve\n"
        "and along the straight line.  Writes curve.json, curve.csv, curve.png, the interactive page curve.html, and\n"
        "the bend as a checkpoint of the same kind as the first: bend.ckpt (bend-1.ckpt, ... if there are several)."
    )
    parser.epilog = (
        "examples:\n"
        "  lightning-rebasin landscape curve a.ckpt b.ckpt -o curve --match --module project.nets.Net --data "
        "project.data.Digits\n"
        "  lightning-rebasin landscape curve a.ckpt b.ckpt -o curve --config config.yaml --epochs 30 --lr 0.03 --plane"
    )
    jobs.add_arguments(parser, "two checkpoints of one architecture, or more")
    jobs.add_match_argument(
        parser,
        "each checkpoint to the one before; end-2.ckpt, ... are written as the curve sees them",
    )
    parser.add_argument(
        "--curve",
        choices=("bezier", "polygon"),
        default="bezier",
        help="smooth, or straight pieces (default: %(default)s)",
    )
    parser.add_argument(
        "--bends",
        type=int,
        default=1,
        help="bends between two checkpoints (default: %(default)s)",
    )
    parser.add_argument(
        "--points",
        type=int,
        default=61,
        help="number of measured t (default: %(default)s)",
    )
    parser.add_argument(
        "--weight-decay",
        type=float,
        default=0.0,
        help="pulls on the weights at t, not on the bends (default: %(default)s)",
    )
    parser.add_argument(
        "--plane",
        action="store_true",
        help="also draw the plane through two ends and their bend, as 'landscape plane' does",
    )
    training.add_training_arguments(parser, lr=0.03)


def run(args: argparse.Namespace) -> int:
    """Train, measure, draw, and print the table."""
    from lightning_rebasin.errors import ConfigurationError

    job = jobs.read_job(args)
    if args.plane and (len(job.files), args.bends) != (2, 1):
        raise ConfigurationError(
            "--plane needs two checkpoints and one bend: three points make a plane"
        )
    curve = _module(args, job)
    training.fit(curve, job, args)
    report = curve.report(job.held_out, points=args.points, **job.measuring)
    folder = jobs.make_folder(args.output)
    report.to_json(folder / "curve.json")
    report.to_csv(folder / "curve.csv")
    report.plot(folder / "curve.png", args.metric)
    report.to_page(folder / "curve.html")
    written = ["curve.json", "curve.csv", "curve.png", "curve.html"]
    written += _write_weights(folder, curve, job, args)
    if args.plane:
        written += _write_plane(folder, curve, job, args)
    training.forget_training(folder)
    print(report)
    print(f"wrote {', '.join(written)} to {folder}")
    return 0


def _module(args: argparse.Namespace, job: jobs.Job) -> CurveModule:
    """The curve before it is trained."""
    import torch

    from lightning_rebasin.modules import CurveModule

    return CurveModule(
        job.module,
        job.states,
        args.curve,
        args.bends,
        start="matched" if args.match else "segment",
        spec=args.spec,
        loss=training.training_loss(job),
        optimizer=partial(torch.optim.SGD, lr=args.lr, momentum=0.9),
        lr_scheduler=training.schedule(args.epochs),
        weight_decay=args.weight_decay,
        batch_norm_batches=args.batches,
        seed=args.seed,
    )


def _write_weights(
    folder: Path, curve: CurveModule, job: jobs.Job, args: argparse.Namespace
) -> list[str]:
    """The bends, and the ends that were permuted."""
    how = {"method": "curve", "curve": args.curve, "epochs": args.epochs}
    count = len(curve.free)
    names = []
    for number in range(count):
        name = f"bend-{number + 1}.ckpt" if count > 1 else "bend.ckpt"
        state = curve.bend_state_dict(number, job.data.train)
        training.write_learned(folder / name, state, job, how)
        names.append(name)
    for number, permutation in enumerate(curve.permutations):
        if permutation is not None:
            name = f"end-{number + 1}.ckpt"
            state = curve.ends.states[number]
            training.write_learned(
                folder / name, state, job, {"method": "match"}
            )
            names.append(name)
    return names


def _write_plane(
    folder: Path, curve: CurveModule, job: jobs.Job, args: argparse.Namespace
) -> list[str]:
    """The plane through both ends and the bend, with the curve on it."""
    from lightning_rebasin.landscape import loss_plane

    bend = curve.bend_state_dict(0, job.data.train)
    plane = loss_plane(
        job.module,
        [*curve.ends.states, bend],
        job.held_out,
        curve=curve.path,
        **job.measuring,
    )
    names = [*(file.path.stem for file in job.files), "bend"]
    plane.to_json(folder / "plane.json")
    plane.to_csv(folder / "plane.csv")
    plane.plot(folder / "plane.png", args.metric, labels=names)
    return ["plane.json", "plane.csv", "plane.png"]
