"""How ``barrier`` brings the second checkpoint near to the first before it measures again."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_rebasin.cli import common, datasets
from lightning_rebasin.errors import (
    ConfigurationError,
    RebasinError,
    RebasinWarning,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

    State = Mapping[str, Tensor]
    Ends = tuple[State, State]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare how B is matched to A."""
    parser.add_argument(
        "--match",
        action=argparse.BooleanOptionalAction,
        help="also measure after matching B to A (default: on, where the symmetries of the network can be inferred)",
    )
    parser.add_argument(
        "--method",
        choices=("weight", "activation", "correlation", "auto"),
        help="match by weights (the default), by activations on --data (inner product or correlation), or by "
        "whichever of them has the best midpoint",
    )
    parser.add_argument(
        "--permutation",
        type=Path,
        metavar="PERM",
        help="match with a permutation from 'match' instead",
    )


def find(
    args: argparse.Namespace,
    module: nn.Module,
    ends: Ends,
    data: datasets.Data,
) -> dict[str, Ends]:
    """Both ends after matching; other kinds than permutations are compared in canonical gauge.

    Args:
        args: Parsed options of :func:`add_arguments`.
        module: The network.
        ends: Its two checkpoints.
        data: Batches to match activations on, and to take an example input from.

    Returns:
        ``{"matched": ends}``, ``{"permuted": ends}`` with a file of ``match``, or nothing where nothing is matched.

    Raises:
        ConfigurationError: Options contradict each other.
        RebasinError: Matching was asked for and is not possible.
    """
    from lightning_rebasin.symmetry import Transform

    chosen = args.method or args.permutation
    asked = args.match or chosen or args.spec
    if args.match is False:
        if chosen:
            raise ConfigurationError(
                "--no-match contradicts --method and --permutation: give one of them"
            )
        return {}
    if args.permutation:
        transform = Transform.load(args.permutation)
        start = transform.spec.canonicalise(ends[0])
        return {"permuted": (start, transform.apply(ends[1]))}
    try:
        return _matched(args, module, ends, data)
    except RebasinError as error:
        if asked:
            raise
        # Nobody asked for it: the naive barrier is still worth having.
        warnings.warn(
            f"only the naive barrier is measured, B cannot be matched to A: {error} (--no-match does not try)",
            RebasinWarning,
            stacklevel=2,
        )
        return {}


def _matched(
    args: argparse.Namespace,
    module: nn.Module,
    ends: Ends,
    data: datasets.Data,
) -> dict[str, Ends]:
    """Both ends after matching, nothing for a network in which nothing may move."""
    spec = common.load_spec(args, module, data.train)
    if not spec.groups:
        print(
            "no symmetry was found in this network: there is nothing to match"
        )
        return {}
    first, second = (spec.canonicalise(end) for end in ends)
    transform = _transform(args, module, spec, (first, second), data)
    return {"matched": (first, transform.apply(second))}


def _transform(
    args: argparse.Namespace,
    module: Any,
    spec: Any,
    ends: Ends,
    data: datasets.Data,
) -> Any:
    """What the wanted method finds; of several methods the one with the best midpoint."""
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
    """The transform with the lowest score; says which one it is."""
    from lightning_rebasin.landscape.pair import closest

    best = closest(scores)
    listed = ", ".join(f"{name} {score:.4g}" for name, score in scores.items())
    print(f"matched by {best}; distances of the midpoints: {listed}")
    return found[best]


def _pair(module: Any, ends: Ends, batches: list[Any]) -> Any:
    """Both checkpoints, ready to run on training batches."""
    from lightning_rebasin.landscape.pair import Pair
    from lightning_rebasin.symmetry.run.lightning import few
    from lightning_rebasin.symmetry.trace.batch_example import batch_example

    if not batches:
        raise ConfigurationError(
            "matching by activations runs the network on training batches: --data gives none; choose --method weight"
        )
    example = batch_example(module, few(batches[0], 8))
    return Pair(module, *ends, example.method)
