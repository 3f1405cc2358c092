"""``lightning-rebasin landscape layers``: which layers of two checkpoints may be averaged."""

from __future__ import annotations

import argparse

from lightning_rebasin.cli import common
from lightning_rebasin.cli.landscape import job as jobs

HELP = "the barrier of every layer of two checkpoints"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.description = (
        "Mixes some layers of A and B and leaves all others as they are, from A and from B.  Writes layers.json,\n"
        "layers.csv and layers.png (layers down the side); with --match also layers-matched.json and .csv, and both\n"
        "in one picture.  A layer is a submodule that owns tensors, with the normalisation that follows it; tied\n"
        "tensors move with their first owner.  Batch-norm statistics are re-estimated for every mixture."
    )
    parser.epilog = (
        "examples:\n"
        "  lightning-rebasin landscape layers a.ckpt b.ckpt -o layers --module project.nets.Net --data "
        "project.data.Digits --match\n"
        "  lightning-rebasin landscape layers a.ckpt b.ckpt -o grown --mode cumulative --order backward --config "
        "config.yaml\n"
        "  lightning-rebasin landscape layers a.ckpt b.ckpt -o parts --layer stem=conv1,bn1 --layer head=fc --config "
        "config.yaml"
    )
    jobs.add_arguments(parser, "two checkpoints of one architecture")
    parser.add_argument(
        "--match",
        action="store_true",
        help="also measure after matching the weights of B to A",
    )
    common.add_kinds_argument(parser)
    parser.add_argument(
        "--mode",
        choices=("single", "cumulative", "window"),
        default="single",
        help="mix each layer by itself, the first, the first two, ..., or so many in a row (default: %(default)s)",
    )
    parser.add_argument(
        "--order",
        default="forward",
        help="forward, backward, random, or names of layers with commas between (default: %(default)s)",
    )
    parser.add_argument(
        "--width",
        type=int,
        default=3,
        help="layers in a window (default: %(default)s)",
    )
    parser.add_argument(
        "--layer",
        action="append",
        metavar="NAME=PART,...",
        help="a layer by hand, of submodules or tensors; once per layer",
    )
    parser.add_argument(
        "--points",
        type=int,
        default=5,
        help="number of α from A to B (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Measure, draw, and print the barriers."""
    from lightning_rebasin.landscape import layer_barriers
    from lightning_rebasin.plotting import plot_layers

    layers = jobs.layers_by_hand(args.layer)
    job = jobs.read_job(args, (2,))
    ends = {"naive": job.states}
    if args.match:
        ends["matched"] = jobs.matched_to_the_first(args, job)
    named = "," in args.order or args.order not in _ORDERS
    order = args.order.split(",") if named else args.order
    found = {}
    for label, (a, b) in ends.items():
        found[label] = layer_barriers(
            job.module,
            a,
            b,
            job.held_out,
            mode=args.mode,
            order=order,
            width=args.width,
            layers=layers,
            points=args.points,
            seed=args.seed,
            **job.measuring,
        )
    folder = jobs.make_folder(args.output)
    written = []
    for label, result in found.items():
        stem = "layers" if label == "naive" else f"layers-{label}"
        result.to_json(folder / f"{stem}.json")
        result.to_csv(folder / f"{stem}.csv")
        written += [f"{stem}.json", f"{stem}.csv"]
    plot_layers(found, args.metric, path=folder / "layers.png")
    _print(found, args.metric)
    print(f"wrote {', '.join(written)} and layers.png to {folder}")
    return 0


_ORDERS = ("forward", "backward", "random")


def _print(found: object, metric: str | None) -> None:
    """One line per layer: the barrier from both ends."""
    from lightning_rebasin.landscape.tables import main_metric

    assert isinstance(found, dict)
    first = next(iter(found.values()))
    columns = {}
    for label, result in found.items():
        for base, row in result.heights(metric).items():
            columns[f"{label}, from {base}"] = row
    width = max(len(layer) for layer in first.layers)
    name = main_metric(first.values, metric)
    print(f"barriers of {name}, layer by layer, from either end")
    print(" " * width + "".join(f"{head:>18}" for head in columns))
    for number, layer in enumerate(first.layers):
        row = "".join(f"{own[number]:>18.4f}" for own in columns.values())
        print(f"{layer:<{width}}{row}")
