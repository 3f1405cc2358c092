"""``lightning-rebasin match``: the permutation (or other transform) alone, as a small file."""

from __future__ import annotations

import argparse
from pathlib import Path

from lightning_rebasin.cli import common, datasets

HELP = "find the permutation that brings one checkpoint nearest to another, and write only that"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.description = (
        "Finds the permutation of B's units that brings its weights nearest to A's, proves that the permuted network\n"
        "computes the same function, and writes the permutation (a small file, which 'apply' uses).  With --kinds the\n"
        "file holds rotations, linear maps, scales and signs, too; a name that ends in .safetensors gives that format."
    )
    parser.epilog = (
        "example:\n  lightning-rebasin match a.ckpt b.ckpt -o b-to-a.perm --module project.models.Net\n"
        "  lightning-rebasin apply b-to-a.perm b.ckpt -o b-aligned.ckpt"
    )
    parser.add_argument(
        "reference",
        type=Path,
        metavar="A",
        help="checkpoint that stays as it is",
    )
    parser.add_argument(
        "source", type=Path, metavar="B", help="checkpoint to be permuted"
    )
    common.add_output_arguments(parser, "the permutation file to write")
    parser.add_argument(
        "--method",
        choices=("weight", "activation"),
        default="weight",
        help="match weights, or activations on --data (default: %(default)s)",
    )
    parser.add_argument(
        "--report",
        type=Path,
        metavar="JSON",
        help="also write the report to this file",
    )
    common.add_json_argument(parser)
    common.add_kinds_argument(parser)
    common.add_model_arguments(parser)
    datasets.add_data_arguments(parser)
    common.add_file_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Match, write the permutation, and print the report."""
    from lightning_rebasin.checkpoints.align import (
        match_by_activations,
        prove,
    )
    from lightning_rebasin.checkpoints.fallbacks import fallbacks_of
    from lightning_rebasin.checkpoints.inputs import read_inputs
    from lightning_rebasin.checkpoints.unfinished import unfinished
    from lightning_rebasin.checkpoints.write import check_target
    from lightning_rebasin.matching import match_weights

    check_target(args.output, force=args.force)
    if args.report:
        # A report may be written again.
        check_target(args.report, force=True)
    reading = common.reading_options(args)
    reference = read_inputs([args.reference], **reading)[0]
    module = common.load_module(args, reference)
    if module is None:
        module = common.described_module(args, args.reference)
    example = common.load_example(args, module)
    data = datasets.load_data(args).train or None
    spec = common.load_spec(args, module, data)
    files = read_inputs(
        [args.reference, args.source],
        spec.tensors,
        fallbacks=fallbacks_of(module, spec),
        progress=not args.no_progress,
        **reading,
    )
    for file in files:
        spec.check_state(file.state_dict, str(file.path), finite=True)
    states = [file.state_dict for file in files]
    work = None
    if args.method == "activation":
        match = match_by_activations(spec, module, states[0], states[1], data)[
            "inner_product"
        ]
    else:
        paths = [args.reference, args.source]
        asked = {"seed": args.seed, **reading}
        work = unfinished(args.output, paths, states, spec, asked)
        match = match_weights(
            spec,
            states[0],
            states[1],
            seed=args.seed,
            progress=not args.no_progress,
            journal=None if work is None else work.journal(1),
        )
    errors = prove(module, states[1:], [match.transform], data, example)
    match.transform.save(args.output)
    if work is not None:
        work.remove()
    report = {**match.to_dict(), "equivalence_errors": list(errors)}
    if args.report:
        common.write_json(args.report, report)
    common.keep_result(args, {**report, "output": args.output})
    print(match.report())
    proof = (
        f"relative error {errors[0]:.0e}"
        if errors
        else "not checked: no --module"
    )
    print(
        f"the permuted network computes the same function: {proof}\nwrote {args.output}"
    )
    return 0
