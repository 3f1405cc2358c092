"""Two classifiers of different classes become one with the classes of both.

The networks ``d1`` and ``d2`` of cifar10-split (ResNet-20) were trained on labels 0-4 and 5-9 of CIFAR-10.  Their heads
are cut to these, so that neither has an output for what it never saw, and merged side by side:

    python examples/merge_heads.py

2000 training images without labels, the first 2000 test images.  Writes a table to examples/results/merge_heads.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from helpers.data import cifar10, normalise
from helpers.models import ResNet20, load_weights
from helpers.shared import shared_path

from lightning_rebasin import merge_checkpoints
from lightning_rebasin.files import atomic_write_text

RESULTS = Path(__file__).resolve().parent / "results" / "merge_heads"
#: The labels that each network knows.
KNOWN = {"d1": slice(0, 5), "d2": slice(5, 10)}


def images(split: str, count: int) -> tuple[Tensor, Tensor]:
    """Prepared images and their labels."""
    x, y = cifar10(split, count)
    x = normalise(x, "cifar10-resnet20")
    # this memory format is faster on a CPU
    return x.contiguous(memory_format=torch.channels_last), y[:count]


def cut(state: Mapping[str, Tensor], classes: slice) -> dict[str, Tensor]:
    """The network with the outputs of some classes only."""
    kept = dict(state)
    for name in ("linear.weight", "linear.bias"):
        kept[name] = state[name][classes].clone()
    return kept


def main() -> None:
    """Cut, merge, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--train", type=int, default=2000)
    parser.add_argument("--test", type=int, default=2000)
    args = parser.parse_args()
    train, _ = images("train", args.train)
    x, y = images("test", args.test)
    folder = shared_path("data/checkpoints/cifar10-split")
    with tempfile.TemporaryDirectory() as temporary:
        paths = []
        for name, classes in KNOWN.items():
            state = load_weights(folder / f"{name}.pt")
            paths.append(Path(temporary) / f"{name}.pt")
            torch.save(cut(state, classes), paths[-1])
        begin = time.process_time()
        report = merge_checkpoints(
            paths,
            Path(temporary) / "merged.pt",
            module=ResNet20(classes=5),
            data=train.split(250),
            evaluate=lambda network: measure(network, x, y),
            heads="concatenate",
        )
        seconds = time.process_time() - begin
    print(report)
    given = (
        f"{args.train} training images without labels, {args.test} test images"
    )
    how = f"Alignment by {report.method}, {report.statistics}; {seconds:.0f} CPU seconds"
    lines = [
        "# Two halves of CIFAR-10 in one head",
        "",
        f"ResNet-20s d1 and d2 with heads of five classes each; {given}.",
        f"{how}.  Made by `examples/merge_heads.py`.",
        "",
        "| network | accuracy on all ten, % | loss |",
        "|---|--:|--:|",
    ]
    for name, row in report.evaluation.items():
        lines.append(
            f"| {name} | {100 * row['accuracy']:.1f} | {row['loss']:.2f} |"
        )
    args.output.mkdir(parents=True, exist_ok=True)
    text = "\n".join(lines) + "\n"
    atomic_write_text(args.output / "merge_heads.md", text)
    print(text)


def measure(network: nn.Module, x: Tensor, y: Tensor) -> dict[str, float]:
    """Accuracy and loss on the outputs of all classes."""
    right, loss = 0.0, 0.0
    with torch.no_grad():
        for images, labels in zip(x.split(250), y.split(250), strict=True):
            logits = network(images)
            right += float((logits.argmax(1) == labels).sum())
            loss += float(cross_entropy(logits, labels, reduction="sum"))
    return {"accuracy": right / len(x), "loss": loss / len(x)}


if __name__ == "__main__":
    main()
