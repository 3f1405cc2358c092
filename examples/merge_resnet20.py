"""Merge CIFAR-10 ResNet-20s that other people trained: pairs and all five, before and after correcting statistics.

Run from the repository with the shared data beside it (or REBASIN_SHARED set):

    python examples/merge_resnet20.py --output docs/merge_resnet20.md

Takes about half an hour on one core.  The network and the readers of the data are those of the tests.  Expected
output: docs/merge_resnet20.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from helpers.data import cifar10, normalise
from helpers.models import ResNet20, accuracy, load_weights
from helpers.shared import shared_path

from lightning_rebasin import (
    average,
    infer_spec,
    match_many,
    match_weights,
    repair,
    reset_batch_norm,
)
from lightning_rebasin.files import atomic_write_text

NAMES = "abcde"
Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Row:
    """Test accuracy of one merge."""

    models: str
    ends: float
    naive: float
    naive_reset: float
    matched: float
    reset: float
    repaired: float


def load(name: str) -> dict[str, Tensor]:
    """Weights of one checkpoint; the oldest one lacks batch counters, which the module supplies."""
    model = ResNet20()
    model.load_state_dict(
        load_weights(
            shared_path(f"data/checkpoints/cifar10-resnet20/{name}.th")
        ),
        strict=False,
    )
    return model.state_dict()


def measure(  # noqa: PLR0917
    names: str,
    states: Mapping[str, Weights],
    batches: Sequence[Tensor],
    images: Tensor,
    labels: Tensor,
    known: dict[str, float] | None = None,
) -> Row:
    """Merge the named models in every way; ``known`` keeps the accuracies of single models."""
    model = ResNet20()
    spec = infer_spec(model, images[:2])
    chosen = [states[name] for name in names]
    if len(chosen) == 2:
        aligned = [
            chosen[0],
            match_weights(spec, *chosen).permutation.apply(chosen[1]),
        ]
    else:
        found = match_many(spec, chosen).permutations
        aligned = [
            permutation.apply(state)
            for permutation, state in zip(found, chosen, strict=True)
        ]

    def score(weights: Weights) -> tuple[float, float]:
        model.load_state_dict(weights)
        return accuracy(model, images, labels), accuracy(
            reset_batch_norm(model, batches), images, labels
        )

    ends = {} if known is None else known
    for name in names:
        if name not in ends:
            model.load_state_dict(states[name])
            ends[name] = accuracy(model, images, labels)
    repaired = accuracy(repair(model, aligned, batches).module, images, labels)
    return Row(
        names,
        sum(ends[name] for name in names) / len(names),
        *score(average(chosen)),
        *score(average(aligned)),
        repaired,
    )


def table(rows: Sequence[Row], samples: tuple[int, int]) -> str:
    """The rows as Markdown."""
    lines = [
        "# Merging CIFAR-10 ResNet-20s trained by others",
        "",
        f"Accuracy in % on {samples[1]} test images; statistics from {samples[0]} training images.",
        f"The standard error is {50 / samples[1] ** 0.5:.1f} at most.",
        "Made by `examples/merge_resnet20.py --train {} --test {}`.".format(
            *samples
        ),
        "At width 1× a barrier remains by nature (the paper needs 32×); what counts here is that each step helps.",
        "",
        "| models | mean of ends | naive | naive + reset | matched | matched + reset | matched + REPAIR |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for r in rows:
        numbers = (
            r.ends,
            r.naive,
            r.naive_reset,
            r.matched,
            r.reset,
            r.repaired,
        )
        lines.append(
            f"| {', '.join(r.models)} | "
            + " | ".join(f"{100 * n:.1f}" for n in numbers)
            + " |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure all pairs and all five, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="Markdown file to write")
    parser.add_argument(
        "--pairs",
        type=int,
        default=10,
        help="how many of the ten pairs (default: %(default)s)",
    )
    parser.add_argument(
        "--train",
        type=int,
        default=2000,
        help="training images (default: %(default)s)",
    )
    parser.add_argument(
        "--test",
        type=int,
        default=10000,
        help="test images (default: %(default)s)",
    )
    args = parser.parse_args()
    states = {name: load(name) for name in NAMES}
    images, labels = cifar10("test", args.test)
    images = normalise(images, "cifar10-resnet20").contiguous(
        memory_format=torch.channels_last
    )  # faster on a CPU
    batches = normalise(
        cifar10("train", args.train)[0], "cifar10-resnet20"
    ).split(250)
    groups = [
        *["".join(pair) for pair in combinations(NAMES, 2)][: args.pairs],
        NAMES,
    ]
    rows: list[Row] = []
    known: dict[str, float] = {}
    for names in tqdm(
        groups[::-1], desc="merges"
    ):  # the five first, and a table after every merge
        rows.insert(0, measure(names, states, batches, images, labels, known))
        if args.output:
            atomic_write_text(
                args.output, table(rows, (args.train, args.test))
            )
    print(table(rows, (args.train, args.test)))


if __name__ == "__main__":
    main()
