"""``merge --page``: the loss along the segment between two models, and at what they were merged to, as one page.

Three curves: the segment between the files as they are, the segment between them after alignment, and the way from A
over the merged model to B, which shows what the corrections behind the average (statistics, REPAIR, refit) are worth.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_rebasin.cli import common, datasets, metrics
from lightning_rebasin.errors import ConfigurationError

if TYPE_CHECKING:
    # Help and bad options must not wait for torch.
    from torch import Tensor, nn

    from lightning_rebasin.checkpoints import MergeReport


def check(
    args: argparse.Namespace, module: nn.Module | None, data: datasets.Data
) -> None:
    """Refuse, before anything is merged, what has no page.

    Raises:
        ConfigurationError: There is no segment, or nothing to measure it on.
        OutputError: The page cannot be written.
        DataError: The network does not run on the held-out data.
    """
    from lightning_rebasin.checkpoints.write import check_target

    if not args.page:
        return
    check_target(args.page, force=args.force)
    if args.page.suffix != ".html":
        raise ConfigurationError(
            f"--page writes one interactive page, for instance merged.html, not {str(args.page)!r}"
        )
    if len(args.files) != 2 or args.heads == "concatenate" or args.untie:
        raise ConfigurationError(
            "--page shows the segment between two models of one architecture: leave it out with three and more files, "
            "with --heads concatenate and with --untie"
        )
    if module is None or data.validate is None:
        raise ConfigurationError(
            "--page measures the network on held-out data: give --module and --data, or --config"
        )
    metrics.check_loader(data.validate)
    metrics.check_fits(module, data.validate, metrics.loss_of(module))


def write(
    args: argparse.Namespace,
    module: nn.Module,
    data: datasets.Data,
    report: MergeReport,
) -> None:
    """Measure the curves and write the page.

    Args:
        args: The command line.
        module: The network.
        data: Training batches for batch norms, and held-out ones.
        report: How the files were merged.
    """
    from lightning_rebasin.landscape import measure_barrier
    from lightning_rebasin.merging.statistics import batch_norms
    from lightning_rebasin.plotting import write_page

    # What ``check`` has made sure of.
    assert data.validate is not None
    measured = partial(
        measure_barrier,
        module,
        dataloader=data.validate,
        loss=metrics.loss_of(module),
        batch_norm=data.train if batch_norms(module) else None,
        progress=not args.no_progress,
    )
    a, b = _states(args, module, args.files)
    curves = {"naive": measured(a, b)}
    spec, transform = report.spec, report.permutations[1]
    if spec is not None and transform is not None:
        # Both in the gauge in which they were averaged: the same functions.
        start = spec.canonicalise(a)
        end = transform.apply(spec.canonicalise(b))
        curves["aligned"] = measured(start, end)
    if report.output is not None:
        (merged,) = _states(args, module, [report.output])
        # Its batch-norm statistics are part of the result.
        over = measured(merged, merged, points=3, batch_norm=None)
        curves["merged"] = _way_over(curves["naive"], over)
    title = f"From {args.files[0]} to {args.files[1]}"
    write_page(curves, args.page, title=title)


def _way_over(ends: Any, merged: Any) -> Any:
    """The curve of three points: A, the merged model, B."""
    from lightning_rebasin.landscape import BarrierCurve

    values = {}
    for name, row in ends.values.items():
        values[name] = (row[0], merged.values[name][1], row[-1])
    return BarrierCurve((0.0, 0.5, 1.0), values)


def _states(
    args: argparse.Namespace, module: nn.Module, paths: list[Path]
) -> list[Mapping[str, Tensor]]:
    """The weights of files, under the names of the network."""
    from lightning_rebasin.checkpoints.fallbacks import fallbacks_of
    from lightning_rebasin.checkpoints.inputs import read_inputs

    files = read_inputs(
        paths,
        module.state_dict(),
        fallbacks=fallbacks_of(module, None),
        progress=False,
        **common.reading_options(args),
    )
    return [file.state_dict for file in files]
