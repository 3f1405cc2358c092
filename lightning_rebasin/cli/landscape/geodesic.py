"""``lightning-rebasin landscape geodesic``: the chain of networks between two whose outputs change least."""

from __future__ import annotations

import argparse
from typing import Any

from lightning_rebasin.cli.landscape import job as jobs

HELP = "the chain of networks between two whose outputs change least"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.description = (
        "Trains a chain of networks from A to B on the Jensen-Shannon divergences of consecutive outputs, on\n"
        "training batches whose labels are not looked at (--batches says how many), and measures it beside the\n"
        "straight line.  The network must be a classifier whose forward returns logits.  Writes energy.csv,\n"
        "energy.png, for the line and the chain path-*.json, path-*.csv and outputs-*.json, path.png, path.html,\n"
        "outputs.png, and the networks of the chain as network-*.ckpt."
    )
    parser.epilog = (
        "example:\n"
        "  lightning-rebasin landscape geodesic a.ckpt b.ckpt -o geodesic --match --module project.nets.Net --data "
        "project.data.Digits"
    )
    jobs.add_arguments(parser, "two checkpoints of one architecture")
    jobs.add_match_argument(parser, "B to A", kinds=True)
    parser.add_argument(
        "--pieces",
        type=int,
        default=10,
        help="straight pieces of the chain (default: %(default)s)",
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=500,
        help="steps of the optimizer, Adam (default: %(default)s)",
    )
    parser.add_argument(
        "--lr",
        type=float,
        default=1e-3,
        help="learning rate; take a tenth of it with --match (default: %(default)s)",
    )
    parser.add_argument(
        "--points",
        type=int,
        default=25,
        help="number of t at which both paths are measured (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Train, measure, draw, and print the lengths."""
    from lightning_rebasin.checkpoints import write_checkpoint
    from lightning_rebasin.landscape import geodesic_path
    from lightning_rebasin.landscape.paths import Line

    job = jobs.read_job(args, (2,))
    a, b = jobs.matched_to_the_first(args, job) if args.match else job.states
    chain = geodesic_path(
        job.module,
        a,
        b,
        job.data.train,
        pieces=args.pieces,
        steps=args.steps,
        lr=args.lr,
        seed=args.seed,
        progress=job.progress,
    )
    paths = {"line": Line(a, b), "geodesic": chain.path}
    curves, lengths = _measure(args, job, paths)
    folder = jobs.make_folder(args.output)
    chain.to_csv(folder / "energy.csv")
    chain.plot(folder / "energy.png")
    for number, state in enumerate(chain.path.anchors):
        write_checkpoint(
            folder / f"network-{number}.ckpt", state, force=args.force
        )
    _write(args, folder, curves, lengths)
    print(chain)
    for label, length in lengths.items():
        print(f"{label:<10}{length}")
        print(f"{'':<10}{curves[label]}")
    print(
        f"wrote energy, path and outputs files, and {len(chain.path.anchors)} networks to {folder}"
    )
    return 0


def _measure(
    args: argparse.Namespace, job: jobs.Job, paths: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The metrics and the length among outputs of every path."""
    from lightning_rebasin.landscape import geodesic_length, measure_path

    options = job.measuring
    curves, lengths = {}, {}
    for label, path in paths.items():
        curves[label] = measure_path(
            job.module, path, job.held_out, args.points, **options
        )
        own = {k: v for k, v in options.items() if k != "loss"}
        lengths[label] = geodesic_length(
            job.module, path, job.held_out, args.points, **own
        )
    return curves, lengths


def _write(
    args: argparse.Namespace,
    folder: Any,
    curves: dict[str, Any],
    lengths: dict[str, Any],
) -> None:
    """Numbers and pictures of both paths."""
    from lightning_rebasin.plotting import (
        plot_barriers,
        plot_output_lengths,
        write_page,
    )

    for label, curve in curves.items():
        curve.to_json(folder / f"path-{label}.json")
        curve.to_csv(folder / f"path-{label}.csv")
        lengths[label].to_json(folder / f"outputs-{label}.json")
    plot_barriers(curves, args.metric, path=folder / "path.png")
    write_page(curves, folder / "path.html", title="The line and the geodesic")
    plot_output_lengths(lengths, path=folder / "outputs.png")
