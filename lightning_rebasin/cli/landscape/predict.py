"""``lightning-rebasin landscape predict``: what derivatives say about the barrier between two checkpoints."""

from __future__ import annotations

import argparse

from lightning_rebasin.cli.landscape import job as jobs

HELP = "the barrier between two checkpoints, predicted and measured"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.description = (
        "Takes gradients and Hessian-vector products along the straight line from A to B, predicts the barrier at\n"
        "the midpoint (exact integrals, a bound, Taylor and quintic from the ends, layer by layer) and measures\n"
        "it.  Writes predict.json, predict.csv, predict-layers.csv and predict.png.  Batch-norm statistics are\n"
        "interpolated like weights: this is the barrier before any reset.  The loss must have a gradient."
    )
    parser.epilog = (
        "example:\n"
        "  lightning-rebasin landscape predict a.ckpt b.ckpt -o predicted --module project.nets.Net --data "
        "project.data.Digits --limit 4"
    )
    jobs.add_arguments(parser, "two checkpoints of one architecture")
    jobs.add_match_argument(parser, "B to A", kinds=True)
    parser.add_argument(
        "--pieces",
        type=int,
        default=4,
        help="pieces of the line, an even number (default: %(default)s)",
    )
    parser.add_argument(
        "--nodes",
        type=int,
        default=4,
        help="places in each piece, its ends included (default: %(default)s)",
    )
    parser.add_argument(
        "--layer",
        action="append",
        metavar="NAME=PART,...",
        help="a layer by hand, of submodules or tensors; once per layer",
    )
    parser.add_argument(
        "--no-layers", action="store_true", help="do not move single layers"
    )


def run(args: argparse.Namespace) -> int:
    """Predict, measure, draw, and print the table."""
    from lightning_rebasin.landscape import predict_barrier

    layers = jobs.layers_by_hand(args.layer)
    job = jobs.read_job(args, (2,))
    a, b = jobs.matched_to_the_first(args, job) if args.match else job.states
    found = predict_barrier(
        job.module,
        a,
        b,
        job.held_out,
        pieces=args.pieces,
        nodes=args.nodes,
        by_layer=not args.no_layers,
        layers=layers,
        loss=job.loss,
        metric=args.metric,
        limit_batches=job.limit,
        progress=job.progress,
    )
    folder = jobs.make_folder(args.output)
    found.to_json(folder / "predict.json")
    found.to_csv(folder / "predict.csv")
    found.layers_to_csv(folder / "predict-layers.csv")
    found.plot(folder / "predict.png")
    print(found)
    print(
        f"wrote predict.json, predict.csv, predict-layers.csv and predict.png to {folder}"
    )
    return 0
