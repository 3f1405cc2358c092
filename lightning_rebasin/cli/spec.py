"""``lightning-rebasin spec``: infer, prove and write the permutation spec of a model."""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_rebasin.cli import common, datasets
from lightning_rebasin.cli.model import (
    add_model_arguments,
    build_inputs,
    build_model,
)

if TYPE_CHECKING:
    from torch import nn

HELP = "infer which permutations leave a model's function unchanged, prove it, write them as JSON"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.description = (
        "Builds the model with fresh weights, traces one forward pass, prints the table of its permutation groups,\n"
        "and proves in float64 that a random permutation of all of them leaves the output unchanged."
    )
    parser.epilog = (
        "example:\n"
        "  lightning-rebasin spec --module torchvision.models.resnet18 --input-shape 1,3,64,64 -o spec.json"
    )
    add_model_arguments(parser)
    parser.add_argument(
        "--data",
        metavar="PKG.NAME",
        help="a LightningDataModule or DataLoader: its first batch is the example, through validation_step where "
        "forward does not take it",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="JSON",
        help="file to write the spec to",
    )
    parser.add_argument(
        "--force", action="store_true", help="overwrite the file if it exists"
    )
    parser.add_argument(
        "--explain",
        action="append",
        default=[],
        metavar="TENSOR",
        help="tell what moves in this tensor, and why not",
    )
    parser.add_argument(
        "--pin",
        action="append",
        default=[],
        metavar="TENSOR",
        help="keep this tensor as it is",
    )
    common.add_json_argument(parser)
    common.add_kinds_argument(parser)
    parser.add_argument(
        "--check",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="prove the spec on the example input before anything is written (default: on)",
    )


def run(args: argparse.Namespace) -> int:
    """Infer, print, prove, and only then write."""
    import torch

    from lightning_rebasin.checkpoints.write import check_target
    from lightning_rebasin.errors import UntracedWarning
    from lightning_rebasin.symmetry import (
        Permutation,
        Transform,
        check_equivalence,
        infer_spec,
    )
    from lightning_rebasin.symmetry.edit.override import pin_tensor

    if args.output is not None:
        check_target(args.output, force=args.force)
    module = build_model(args)
    inputs = (
        _first_batch(args, module)
        if args.data and not args.input_shape
        else build_inputs(args, module)
    )
    with warnings.catch_warnings():
        # The table prints the same notes.
        warnings.simplefilter("ignore", UntracedWarning)
        spec = infer_spec(module, *inputs, kinds=common.kinds_of(args))
    for tensor in args.pin:
        spec = pin_tensor(spec, tensor)
    explained = [spec.explain(tensor) for tensor in args.explain]
    print("\n".join([str(spec), *explained]))
    error = None
    if args.check:
        transform = Transform.random(
            spec, torch.Generator().manual_seed(args.seed)
        )
        error = check_equivalence(module, transform, *inputs)
        drawn = "permutation"
        if not isinstance(transform, Permutation):
            drawn = "element"
        print(
            f"proved: a random {drawn} of every group changes the output by {error:.1e} (relative, float64)"
        )
    common.keep_result(
        args, {"spec": spec.to_dict(), "equivalence_error": error}
    )
    if args.output is not None:
        spec.save(args.output)
        print(f"wrote {args.output}")
    return 0


def _first_batch(
    args: argparse.Namespace, module: nn.Module
) -> tuple[Any, ...]:
    """The example that the data give."""
    from lightning_rebasin.checkpoints.align import example_input

    data = datasets.load_data(
        argparse.Namespace(data=args.data, config=None, batches=1)
    )
    return example_input(module, None, data.train)
