"""``lightning-rebasin barrier``: the loss between two checkpoints, measured and drawn."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from lightning_rebasin.cli import common, datasets, metrics

HELP = "measure and draw the loss barrier between two checkpoints"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.description = (
        "Evaluates the network at points between A and B and prints the barrier: how much worse the worst point is\n"
        "than the mean of the ends.  With --match or --method also after matching B to A.  A LightningModule is\n"
        "measured by what its validation_step logs, any other module as a classifier (cross-entropy and accuracy)."
    )
    parser.epilog = (
        "example:\n"
        "  lightning-rebasin barrier a.ckpt b.ckpt --module project.models.Net --data project.data.Digits --match "
        "-o barrier.png"
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
        help="file to write: a picture (.png, .pdf, .svg), .csv or .json",
    )
    parser.add_argument(
        "--force", action="store_true", help="overwrite OUT if it exists"
    )
    parser.add_argument(
        "--match",
        action="store_true",
        help="also measure after matching the weights of B to A",
    )
    parser.add_argument(
        "--method",
        choices=("weight", "activation", "correlation", "auto"),
        help="like --match, by weights, by activations on --data (inner product or correlation), or by whichever of "
        "them has the best midpoint",
    )
    parser.add_argument(
        "--permutation",
        type=Path,
        metavar="PERM",
        help="like --match, with a permutation from 'match'",
    )
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
    common.add_kinds_argument(parser)
    common.add_model_arguments(parser)
    datasets.add_data_arguments(parser)
    common.add_file_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Measure, draw, and print the barriers."""
    from lightning.pytorch import LightningModule

    from lightning_rebasin.checkpoints.fallbacks import fallbacks_of
    from lightning_rebasin.checkpoints.inputs import read_inputs
    from lightning_rebasin.checkpoints.write import check_target
    from lightning_rebasin.errors import ConfigurationError
    from lightning_rebasin.landscape import measure_barrier
    from lightning_rebasin.merging.statistics import batch_norms

    if args.output:
        check_target(args.output, force=args.force)
        common.check_format(args.output)
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
    by_itself = isinstance(module, LightningModule)
    measured = partial(
        measure_barrier,
        module,
        dataloader=data.validate,
        loss=None if by_itself else metrics.cross_entropy,
    )
    if args.metric:
        # One batch says what is measured at all, before everything is.
        measured(a, b, points=3, limit_batches=1).midpoint(args.metric)
    curves = {}
    for label, (start, end) in {
        "naive": (a, b),
        **_matched(args, module, a, b, data),
    }.items():
        curves[label] = measured(
            start,
            end,
            points=args.points,
            batch_norm=data.train if batch_norms(module) else None,
            limit_batches=args.limit,
            progress=not args.no_progress,
        )
    _print(curves)
    if args.output:
        _write(args, curves)
        print(f"wrote {args.output}")
    return 0


def _matched(
    args: argparse.Namespace, module: Any, a: Any, b: Any, data: datasets.Data
) -> dict[str, Any]:
    """Both ends after matching, if asked for: other kinds than permutations are compared in canonical gauge."""
    from lightning_rebasin.symmetry import Transform

    if args.permutation:
        found = Transform.load(args.permutation)
        return {"permuted": (found.spec.canonicalise(a), found.apply(b))}
    if not args.match and not args.method:
        return {}
    spec = common.load_spec(args, module, data.train)
    ends = (spec.canonicalise(a), spec.canonicalise(b))
    found = _permutation(args, module, spec, ends, data)
    return {"matched": (ends[0], found.apply(ends[1]))}


def _permutation(
    args: argparse.Namespace,
    module: Any,
    spec: Any,
    ends: tuple[Any, Any],
    data: datasets.Data,
) -> Any:
    """The permutation that the wanted method finds; of several methods the one with the best midpoint."""
    from lightning_rebasin.landscape.pair import METHODS
    from lightning_rebasin.matching import match_weights

    methods = METHODS if args.method == "auto" else (args.method or "weight",)
    spec = spec.pin_identical_buffers(*ends)
    found = {}
    if "weight" in methods:
        found["weight"] = match_weights(
            spec, *ends, seed=args.seed, progress=not args.no_progress
        ).transform
    if methods == ("weight",):
        return found["weight"]
    batches = list(data.train)
    pair = _pair(module, ends, batches)
    by_activations = [method for method in methods if method != "weight"]
    found |= pair.match(spec, batches, by_activations)
    if len(found) == 1:
        return found[methods[0]]
    return _best(found, pair.distances(found, batches))


def _best(found: dict[str, Any], scores: dict[str, float]) -> Any:
    """The permutation with the lowest score; says which one it is."""
    from lightning_rebasin.landscape.pair import closest

    best = closest(scores)
    listed = ", ".join(f"{name} {score:.4g}" for name, score in scores.items())
    print(f"matched by {best}; distances of the midpoints: {listed}")
    return found[best]


def _pair(module: Any, ends: tuple[Any, Any], batches: list[Any]) -> Any:
    """Both checkpoints, ready to run on training batches."""
    from lightning_rebasin.errors import ConfigurationError
    from lightning_rebasin.landscape.pair import Pair
    from lightning_rebasin.symmetry.run.lightning import few
    from lightning_rebasin.symmetry.trace.batch_example import batch_example

    if not batches:
        raise ConfigurationError(
            "matching by activations runs the network on training batches: --data gives none; choose --method weight"
        )
    example = batch_example(module, few(batches[0], 8))
    return Pair(module, *ends, example.method)


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


def _write(args: argparse.Namespace, curves: dict[str, Any]) -> None:
    from lightning_rebasin.files import atomic_path

    if args.output.suffix == ".json":
        common.write_json(
            args.output,
            {label: curve.to_dict() for label, curve in curves.items()},
        )
    elif args.output.suffix == ".csv":
        from lightning_rebasin.files import atomic_write_text

        atomic_write_text(args.output, _csv(curves))
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
