"""``lightning-rebasin barrier``: the loss between two checkpoints, measured and drawn."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_rebasin.cli import (
    common,
    datasets,
    matched_ends,
    metrics,
    ranks,
)

if TYPE_CHECKING:
    # Help and bad options must not wait for torch.
    from lightning_rebasin.landscape.shared_grid import Share

HELP = "measure and draw the loss barrier between two checkpoints"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.description = (
        "Evaluates the network at points between A and B and prints the barrier: how much worse the worst point is\n"
        "than the mean of the ends, as the checkpoints are and after matching B to A.  A LightningModule is measured\n"
        "by what its validation_step logs, any other module as a classifier (cross-entropy and accuracy)."
    )
    parser.epilog = (
        "examples:\n"
        "  lightning-rebasin barrier a.ckpt b.ckpt --module project.models.Net --data project.data.Digits "
        "-o barrier.html\n"
        "  torchrun --nproc-per-node 4 --no-python lightning-rebasin barrier a.ckpt b.ckpt --config config.yaml"
        "   # share the points"
    )
    parser.add_argument(
        "reference", type=Path, metavar="A", help="checkpoint at λ = 0"
    )
    parser.add_argument(
        "source", type=Path, metavar="B", help="checkpoint at λ = 1"
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="OUT",
        help="file to write: an interactive page (.html), a picture (.png, .pdf, .svg), .csv or .json",
    )
    parser.add_argument(
        "--force", action="store_true", help="overwrite OUT if it exists"
    )
    matched_ends.add_arguments(parser)
    parser.add_argument(
        "--points",
        type=int,
        default=25,
        help="number of λ (default: %(default)s)",
    )
    parser.add_argument(
        "--metric", help="which metric to draw (default: the first loss)"
    )
    parser.add_argument(
        "--limit", type=int, metavar="N", help="use only N validation batches"
    )
    parser.add_argument(
        "--no-progress", action="store_true", help="no progress bars"
    )
    common.add_json_argument(parser)
    common.add_kinds_argument(parser)
    common.add_model_arguments(parser)
    datasets.add_data_arguments(parser)
    common.add_file_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Measure, draw, and print the barriers."""
    with ranks.sharing() as share:
        if share.rank:
            # One of them talks.
            args.no_progress = True
        curves = _curves(args, share)
        if share.rank:
            return 0
        common.keep_result(args, _content(curves))
        _print(curves)
        if args.output:
            _write(args, curves)
            print(f"wrote {args.output}")
        return 0


def _curves(args: argparse.Namespace, share: Share) -> dict[str, Any]:
    """The barrier of the files as they are, and after matching."""
    from lightning_rebasin.checkpoints.fallbacks import fallbacks_of
    from lightning_rebasin.checkpoints.inputs import read_inputs
    from lightning_rebasin.checkpoints.write import check_target
    from lightning_rebasin.errors import ConfigurationError
    from lightning_rebasin.landscape.shared_grid import measure_shared_barrier
    from lightning_rebasin.merging.statistics import batch_norms

    if args.output:
        check_target(args.output, force=args.force)
        common.check_format(args.output, ".html")
    reading = common.reading_options(args)
    module = common.load_module(
        args, read_inputs([args.reference], **reading)[0]
    )
    data = datasets.load_data(args)
    if module is None or data.validate is None:
        raise ConfigurationError(
            "measuring runs the network on data: give --module and --data, or --config"
        )
    metrics.check_loader(data.validate)
    files = read_inputs(
        [args.reference, args.source],
        module.state_dict(),
        fallbacks=fallbacks_of(module, None),
        progress=not args.no_progress,
        **reading,
    )
    a, b = (file.state_dict for file in files)
    loss = metrics.loss_of(module)
    metrics.check_fits(module, data.validate, loss, args.metric)
    measured = partial(
        measure_shared_barrier,
        module,
        dataloader=data.validate,
        share=share,
        loss=loss,
        points=args.points,
        batch_norm=data.train if batch_norms(module) else None,
        limit_batches=args.limit,
        progress=not args.no_progress,
    )
    # Measured before anything is matched: a file that does not fit has one thing to say.
    curves = {"naive": measured(a, b)}
    matched = {}
    if not share.rank:
        matched = matched_ends.find(args, module, (a, b), data)
    # What the first process found, for all.
    matched = share.gather(matched)[0]
    for label, (start, end) in matched.items():
        curves[label] = measured(start, end)
    return curves


def _print(curves: dict[str, Any]) -> None:
    first = next(iter(curves.values()))
    width = max(len(name) for name in first.values)
    print(
        f"{'':<{width}}  "
        + "  ".join(
            f"{head:>12}"
            for head in ("A", "B", *(f"{c} ½" for c in curves), *curves)
        )
    )
    for metric, row in first.values.items():
        numbers = [
            row[0],
            row[-1],
            *(c.midpoint(metric) for c in curves.values()),
        ]
        numbers += [c.height(metric) for c in curves.values()]
        print(
            f"{metric:<{width}}  "
            + "  ".join(f"{number:>12.4f}" for number in numbers)
        )
    print(
        "the last columns are the barriers: worst point against the mean of both ends"
    )


def _content(curves: dict[str, Any]) -> dict[str, Any]:
    """Every curve, by label."""
    return {label: curve.to_dict() for label, curve in curves.items()}


def _write(args: argparse.Namespace, curves: dict[str, Any]) -> None:
    from lightning_rebasin.files import atomic_path

    if args.output.suffix == ".json":
        common.write_json(args.output, _content(curves))
    elif args.output.suffix == ".csv":
        from lightning_rebasin.files import atomic_write_text

        atomic_write_text(args.output, _csv(curves))
    elif args.output.suffix == ".html":
        from lightning_rebasin.plotting import write_page

        title = f"From {args.reference} to {args.source}"
        write_page(curves, args.output, title=title)
    else:
        from lightning_rebasin.plotting import plot_barriers

        metrics = list(next(iter(curves.values())).values)
        metric = args.metric or next(
            (m for m in metrics if "loss" in m), metrics[0]
        )
        figure = plot_barriers(curves, metric)
        with atomic_path(args.output) as temporary:
            figure.savefig(
                temporary,
                format=args.output.suffix.lstrip(".") or "png",
                dpi=150,
            )


def _csv(curves: dict[str, Any]) -> str:
    first = next(iter(curves.values()))
    lines = [
        "lam,"
        + ",".join(
            f"{label}_{metric}"
            for label, curve in curves.items()
            for metric in curve.values
        )
    ]
    for i, lam in enumerate(first.lambdas):
        numbers = [
            curve.values[metric][i]
            for curve in curves.values()
            for metric in curve.values
        ]
        lines.append(",".join(f"{number:.10g}" for number in (lam, *numbers)))
    return "\n".join(lines) + "\n"
