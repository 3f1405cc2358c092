"""``lightning-rebasin apply``: a permutation, or another transform, applied to a checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lightning_rebasin.cli import common

HELP = "apply a permutation (or other transform) written by 'match' to a checkpoint"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.description = (
        "Permutes the units of a checkpoint, or applies what 'match --kinds' found; the network computes the same\n"
        "function afterwards.  With --permute-optimizer the optimizer's state moves along, so that training can be\n"
        "continued exactly; where a kind of symmetry has no exact rule, a warning says what was left out."
    )
    parser.epilog = "example:\n  lightning-rebasin apply b-to-a.perm b.ckpt -o b-aligned.ckpt --permute-optimizer"
    parser.add_argument(
        "permutation",
        type=Path,
        metavar="PERM",
        help="file written by 'lightning-rebasin match'",
    )
    parser.add_argument(
        "file", type=Path, metavar="FILE", help="checkpoint to be permuted"
    )
    common.add_output_arguments(parser, "the checkpoint to write")
    parser.add_argument(
        "--inverse",
        action="store_true",
        help="undo the permutation instead; for other kinds the result is in canonical gauge: the same function, "
        "other numbers",
    )
    parser.add_argument(
        "--permute-optimizer",
        action="store_true",
        help="keep optimizer, schedulers and loops of a Lightning checkpoint and move the optimizer's state along; "
        "give --module if the optimizer has several groups of parameters",
    )
    common.add_json_argument(parser)
    common.add_model_arguments(parser, spec=False)
    common.add_file_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Permute and write."""
    from lightning_rebasin.checkpoints.apply import apply_to_checkpoint
    from lightning_rebasin.checkpoints.inputs import read_inputs
    from lightning_rebasin.checkpoints.write import check_target
    from lightning_rebasin.symmetry import Transform

    check_target(args.output, force=args.force)
    transform = Transform.load(args.permutation)
    transform = transform.inverse() if args.inverse else transform
    checkpoint = read_inputs(
        [args.file], transform.spec.tensors, **common.reading_options(args)
    )[0]
    module = common.load_module(args, checkpoint)
    error = apply_to_checkpoint(
        checkpoint,
        transform,
        args.output,
        module=module,
        example=common.load_example(args, module),
        permute_optimizer=args.permute_optimizer,
        force=args.force,
    )
    common.keep_result(
        args, {"output": args.output, "equivalence_error": error}
    )
    print(
        f"{_said(transform)}\nwrote {args.output}"
        + (
            " (not checked: no --module)"
            if error is None
            else f" (same function: relative error {error:.0e})"
        )
    )
    return 0


def _said(transform: Any) -> str:
    """How much moves, in words."""
    moved = transform.moved
    changed = [name for name, share in moved.items() if share]
    if not changed:
        return "nothing moves: this is the identity"
    listed = ", ".join(f"{name} {moved[name]:.0%}" for name in changed[:5])
    more = ", ..." if len(changed) > 5 else ""
    return f"{len(changed)} of {len(moved)} groups change: {listed}{more}"
