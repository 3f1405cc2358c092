"""``lightning-rebasin landscape profile``: the loss from one checkpoint to another, or along a random direction."""

from __future__ import annotations

import argparse

from lightning_rebasin.cli.landscape import job as jobs

HELP = "the loss from initialisation to the end, or along a random direction"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.description = (
        "Evaluates the network on the straight line from A to B and marks every stretch that gets worse (monotone\n"
        "linear interpolation, if A is the initialisation of B), or along a random filter-normalised direction\n"
        "through A alone.  Writes profile.json, profile.csv and profile.png."
    )
    parser.epilog = (
        "examples:\n"
        "  lightning-rebasin landscape profile init.ckpt final.ckpt -o profile --module project.nets.Net --data "
        "project.data.Digits\n"
        "  lightning-rebasin landscape profile a.ckpt -o around-a --reach -0.5 0.5 --config config.yaml"
    )
    jobs.add_arguments(parser, "two checkpoints of one architecture, or one")
    parser.add_argument(
        "--points",
        type=int,
        default=50,
        help="number of places (default: %(default)s)",
    )
    parser.add_argument(
        "--reach",
        type=float,
        nargs=2,
        metavar=("FIRST", "LAST"),
        help="first and last place (default: 0 1 between two checkpoints, -1 1 around one)",
    )


def run(args: argparse.Namespace) -> int:
    """Measure, draw, and print the bumps."""
    from lightning_rebasin.landscape import loss_profile

    job = jobs.read_job(args, (2, 1))
    start, *others = job.states
    profile = loss_profile(
        job.module,
        start,
        job.held_out,
        to=others[0] if others else None,
        reach=tuple(args.reach) if args.reach else None,
        points=args.points,
        seed=args.seed,
        **job.measuring,
    )
    folder = jobs.make_folder(args.output)
    profile.to_json(folder / "profile.json")
    profile.to_csv(folder / "profile.csv")
    profile.plot(folder / "profile.png", args.metric)
    for name, row in profile.values.items():
        print(
            f"{name}: {row[0]:.4f} to {row[-1]:.4f}, bump {profile.bump(name):.4f}"
        )
    print(f"wrote profile.json, profile.csv and profile.png to {folder}")
    return 0
