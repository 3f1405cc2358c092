"""``lightning-rebasin landscape plane``: contours of the loss on the plane through three checkpoints, or around one."""

from __future__ import annotations

import argparse

from lightning_rebasin.cli.landscape import job as jobs

HELP = "the loss on the plane through three checkpoints, or around one"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.description = (
        "Evaluates the network on a grid of the plane through three checkpoints (for instance two trainings and\n"
        "their merge, or two ends and the bend of 'landscape curve'), or on the plane of two random filter-normalised\n"
        "directions around a single one.  Writes plane.json, plane.csv and plane.png.  Coordinates are distances over\n"
        "the parameters."
    )
    parser.epilog = (
        "examples:\n"
        "  lightning-rebasin landscape plane a.ckpt b.ckpt c.ckpt -o plane --module project.nets.Net --data "
        "project.data.Digits\n"
        "  lightning-rebasin landscape plane a.ckpt b.ckpt bend.ckpt -o plane --curve bezier --config config.yaml\n"
        "  lightning-rebasin landscape plane a.ckpt -o around-a --config config.yaml"
    )
    jobs.add_arguments(parser, "three checkpoints of one architecture, or one")
    jobs.add_match_argument(parser, "B and C to A", kinds=True)
    parser.add_argument(
        "--points",
        type=int,
        default=21,
        help="grid points along each axis (default: %(default)s)",
    )
    parser.add_argument(
        "--margin",
        type=float,
        default=0.2,
        help="how far the grid reaches beyond the three, as a share of their width (default: %(default)s)",
    )
    parser.add_argument(
        "--curve",
        choices=("bezier", "polygon"),
        help="draw the path from A to B whose bend is C",
    )
    parser.add_argument(
        "--levels",
        choices=("log", "linear"),
        default="log",
        help="levels of the picture (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Measure, draw, and print where the models lie."""
    from lightning_rebasin.errors import ConfigurationError
    from lightning_rebasin.landscape import loss_plane
    from lightning_rebasin.landscape.paths import Bezier, Polygon

    job = jobs.read_job(args, (3, 1))
    alone = len(job.files) == 1
    if alone and (args.curve or args.match):
        raise ConfigurationError(
            "--curve and --match need three checkpoints: two ends and a bend"
        )
    states = jobs.matched_to_the_first(args, job) if args.match else job.states
    path: Bezier | Polygon | None = None
    if args.curve:
        a, b, bend = states
        kind = Bezier if args.curve == "bezier" else Polygon
        path = kind((a, bend, b))
    plane = loss_plane(
        job.module,
        states,
        job.held_out,
        points=args.points,
        margin=args.margin,
        curve=path,
        seed=args.seed,
        **job.measuring,
    )
    names = [file.path.stem for file in job.files]
    # Drawn before anything is written: levels that cannot be drawn are refused here.
    plane.plot(None, args.metric, levels=args.levels, labels=names)
    folder = jobs.make_folder(args.output)
    plane.to_json(folder / "plane.json")
    plane.to_csv(folder / "plane.csv")
    plane.plot(
        folder / "plane.png", args.metric, levels=args.levels, labels=names
    )
    _print(names, plane)
    print(f"wrote plane.json, plane.csv and plane.png to {folder}")
    return 0


def _print(names: list[str], plane: object) -> None:
    from lightning_rebasin.landscape import LossPlane

    assert isinstance(plane, LossPlane)
    metrics = list(plane.model_values)
    heads = "".join(f"{metric:>16}" for metric in metrics)
    print(f"{'':<20}{'x':>10}{'y':>10}{heads}")
    for number, (name, (x, y)) in enumerate(
        zip(names, plane.models, strict=True)
    ):
        values = "".join(
            f"{plane.model_values[metric][number]:>16.4f}"
            for metric in metrics
        )
        print(f"{name:<20}{x:>10.2f}{y:>10.2f}{values}")
    print(plane)
