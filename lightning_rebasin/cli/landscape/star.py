"""``lightning-rebasin landscape star``: a centre that straight lines of low loss join to every checkpoint."""

from __future__ import annotations

import argparse
from functools import partial
from typing import TYPE_CHECKING

from lightning_rebasin.cli.landscape import job as jobs
from lightning_rebasin.cli.landscape import training

if TYPE_CHECKING:
    from lightning_rebasin.modules import StarModule

HELP = (
    "learn a centre that is joined to every checkpoint by a line of low loss"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.description = (
        "Trains a centre by the network's own training_step at random points of the lines to all checkpoints (Lin,\n"
        "Li, Wu 2024), and measures everything that validation_step logs on these lines and between the checkpoints.\n"
        "Writes star.json, star.csv, star.png, star.html, and the centre as a checkpoint of the same kind as the\n"
        "first, center.ckpt."
    )
    parser.epilog = (
        "example:\n"
        "  lightning-rebasin landscape star a.ckpt b.ckpt c.ckpt -o star --match --module project.nets.Net --data "
        "project.data.Digits"
    )
    jobs.add_arguments(parser, "two checkpoints of one architecture, or more")
    jobs.add_match_argument(
        parser,
        "all checkpoints to the first, and before every epoch to the centre (star domains)",
    )
    parser.add_argument(
        "--points",
        type=int,
        default=11,
        help="number of measured points of every line (default: %(default)s)",
    )
    parser.add_argument(
        "--proximity",
        type=float,
        default=0.0,
        help="weight of the squared distance to the checkpoints (default: %(default)s)",
    )
    training.add_training_arguments(parser, lr=0.01)


def run(args: argparse.Namespace) -> int:
    """Train, measure, draw, and print the table."""
    job = jobs.read_job(args)
    star = _module(args, job)
    training.fit(star, job, args)
    report = star.report(job.held_out, points=args.points, **job.measuring)
    folder = jobs.make_folder(args.output)
    report.to_json(folder / "star.json")
    report.to_csv(folder / "star.csv")
    report.plot(folder / "star.png", args.metric)
    report.to_page(folder / "star.html")
    centre = star.center_state_dict(job.data.train)
    how = {"method": "star", "epochs": args.epochs}
    training.write_learned(folder / "center.ckpt", centre, job, how)
    training.forget_training(folder)
    print(report)
    written = ["star.json", "star.csv", "star.png", "star.html"]
    print(f"wrote {', '.join(written)}, center.ckpt to {folder}")
    return 0


def _module(args: argparse.Namespace, job: jobs.Job) -> StarModule:
    """The star before it is trained."""
    import torch

    from lightning_rebasin.modules import StarModule

    return StarModule(
        job.module,
        job.states,
        match="epoch" if args.match else "never",
        spec=args.spec,
        loss=training.training_loss(job),
        optimizer=partial(torch.optim.Adam, lr=args.lr),
        lr_scheduler=training.schedule(args.epochs),
        proximity=args.proximity,
        batch_norm_batches=args.batches,
        seed=args.seed,
    )
