"""``lightning-rebasin merge``: one working checkpoint out of several."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from lightning_rebasin.cli import common, datasets, merge_page, metrics

HELP = "merge two or more checkpoints into one that works"
#: As in ``checkpoints.options``, written out so that help need not wait for torch.
METHODS = ("auto", "weight", "activation", "correlation", "average", "none")
STATISTICS = ("auto", "none", "reset", "repair", "refit")
HEADS = ("average", "concatenate")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.description = (
        "Permutes the units of B, C, ... so that their weights fit those of A, proves that the permuted networks\n"
        "compute the same function, averages, corrects or refits the layers, and writes a normal checkpoint with the\n"
        "names, hyper-parameters and format of A (OUT.ckpt: Lightning, OUT.safetensors: safetensors).\n"
        "With --data the best alignment and correction are found by measurement, shown as a small table."
    )
    parser.epilog = (
        "examples:\n"
        "  lightning-rebasin merge a.ckpt b.ckpt -o merged.ckpt --module project.nets.Net --data project.data.Digits\n"
        "  lightning-rebasin merge a.ckpt b.ckpt c.ckpt -o merged.ckpt --config config.yaml --report report.json\n"
        "  lightning-rebasin merge a.pt b.pt -o merged.safetensors --spec spec.json --share 0.3 0.7\n"
        "  lightning-rebasin merge folder-a folder-b -o merged   # Hugging Face folders say what they are\n"
        "  lightning-rebasin merge base-tuned-1.ckpt base-tuned-2.ckpt -o merged.ckpt --method average"
    )
    parser.add_argument(
        "files",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="checkpoints of one architecture; A comes first",
    )
    common.add_output_arguments(parser, "the checkpoint to write")
    parser.add_argument(
        "--method",
        choices=METHODS,
        default="auto",
        help="how to align: by weights, by activations (inner products, or their correlation; both need --data), not "
        "at all (average: for fine-tunes of one base); 'none' keeps A, to correct its statistics or change its format; "
        "'auto' measures which is best with --data, and matches by weights without (default: %(default)s)",
    )
    parser.add_argument(
        "--many",
        choices=("merge_many", "cycle_consistent"),
        default="merge_many",
        help="three or more models by weights: each in turn to the mean of the others, or all at once as in C2M3 "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--share",
        "--weight",
        dest="share",
        nargs="+",
        type=float,
        action=_Share,
        metavar="S",
        help="share of each model in the mix (default: equal); --weight is the old name",
    )
    parser.add_argument(
        "--statistics",
        choices=STATISTICS,
        default="auto",
        help="what to do with the averaged weights: re-estimate batch-norm statistics, REPAIR every layer, or refit "
        "the layers by least squares (needs no labels); all need --data, with which 'auto' measures what is best "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--heads",
        choices=HEADS,
        default="average",
        help="'concatenate' puts the heads of classifiers of different label sets side by side: the outputs of A come "
        "first, then those of B, ... (default: %(default)s)",
    )
    common.add_json_argument(parser)
    common.add_kinds_argument(parser)
    parser.add_argument(
        "--untie",
        action="store_true",
        help="with --kinds: give a tied head that stands in the way of larger symmetries weights of its own; OUT then "
        "needs an untied network (the config.json of a Hugging Face folder says so)",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="do everything but write OUT"
    )
    parser.add_argument(
        "--report",
        type=Path,
        metavar="JSON",
        help="also write the report to this file",
    )
    parser.add_argument(
        "--page",
        type=Path,
        metavar="HTML",
        help="also measure the segment between two files on the held-out data, as they are and aligned, and write it "
        "and the merged model as an interactive page",
    )
    common.add_model_arguments(parser)
    datasets.add_data_arguments(parser, several=True)
    common.add_file_arguments(parser)


def _kinds(args: argparse.Namespace) -> str | tuple[str, ...]:
    """Permutations alone are the default of the options."""
    kinds = common.kinds_of(args)
    return "permutation" if kinds == ("permutation",) else kinds


class _Share(argparse.Action):
    """Stores the shares; the old spelling still works, with a warning, because ``--weights`` says which weights."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Keep the values."""
        del parser
        if option_string == "--weight":
            print("warning: --weight is called --share now", file=sys.stderr)
        setattr(namespace, self.dest, values)


def run(args: argparse.Namespace) -> int:
    """Merge, and print the report."""
    from lightning_rebasin.checkpoints import (
        merge_checkpoints,
        read_checkpoint,
    )
    from lightning_rebasin.checkpoints.options import MergeOptions
    from lightning_rebasin.checkpoints.write import check_target
    from lightning_rebasin.symmetry import PermutationSpec

    if not args.dry_run:
        check_target(args.output, force=args.force)
    if args.report:
        # A report may be written again.
        check_target(args.report, force=True)
    reading = common.reading_options(args)
    first = read_checkpoint(args.files[0], **reading)
    module = common.load_module(args, first)
    if module is None and args.method not in ("average", "none"):
        module = common.described_module(args, args.files[0])
    data = datasets.load_data(args)
    merge_page.check(args, module, data)
    # The labels of each model's data may begin at 0: outputs are compared instead.
    joined = args.heads == "concatenate"
    options = MergeOptions(
        method=args.method,
        many=args.many,
        shares=args.share,
        statistics=args.statistics,
        heads=args.heads,
        kinds=_kinds(args),
        untie=args.untie,
        select=reading["weights"],
        prefix=reading["prefix"],
        unsafe=reading["unsafe"],
        seed=args.seed,
        sources=data.sources,
        dry_run=args.dry_run,
        force=args.force,
        progress=not args.no_progress,
    )
    report = merge_checkpoints(
        args.files,
        args.output,
        module=module,
        spec=PermutationSpec.load(args.spec) if args.spec else None,
        data=data.train or None,
        example=common.load_example(args, module),
        evaluate=metrics.evaluator(module, data),
        loss=None if joined else metrics.held_out_loss(module, data),
        options=options,
    )
    if args.report:
        common.write_json(args.report, report.to_dict())
    if args.page and module is not None:
        merge_page.write(args, module, data, report)
    common.keep_result(args, report.to_dict())
    print(report)
    if args.page:
        print(f"wrote {args.page}")
    return 0
