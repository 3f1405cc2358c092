"""What the studies share: the perceptrons of Git Re-Basin, images, kept trainings, results with seeds and versions.

Trainings are kept in the temporary folder of the machine, so that a study that was interrupted goes on, and so that
studies of the same networks train them once.
"""

from __future__ import annotations

import argparse
import csv
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

# Of the studies of the landscape, which also make the test helpers importable; it has to come first for that.
from landscape_common import (
    WORK,
    Classifier,
    State,
    add_rows,
    cifar10,
    fit,
    kept,
    loader,
    mnist,
    shared_path,
)
from torch.nn.functional import cross_entropy

import lightning_rebasin

__all__ = ["Classifier", "State", "loader", "shared_path"]
#: Where results are kept.
RESULTS = Path(__file__).resolve().parents[1] / "results" / "studies"
Images = tuple[Tensor, Tensor]


def images(name: str, split: str, count: int | None = None) -> Images:
    """Flat images in [0, 1], as Git Re-Basin takes them, and labels.

    Args:
        name: ``mnist``, ``fashion-mnist`` or ``cifar10``.
        split: ``train`` or ``test``.
        count: Only the first so many.
    """
    if name == "cifar10":
        pixels, labels = cifar10(split, count)
    else:
        pixels, labels = mnist(split, name)
    return pixels[:count].flatten(1), labels[:count]


def perceptron(width: int, features: int = 784, depth: int = 3) -> nn.Module:
    """``depth`` hidden layers of ``width`` ReLU units, ten outputs."""
    sizes = [features, *[width] * depth]
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def trained(
    name: str,
    network: Callable[[], nn.Module],
    train: Images,
    *,
    seed: int,
    epochs: int,
    batch: int = 500,
    optimizer: Any = None,
    schedule: Any = None,
) -> State:
    """Weights after a training, or those of the last run under the same name.

    Args:
        name: Under which they are kept; names everything that matters.
        network: Makes the network, after the seed was set.
        train: Images and labels.
        seed: Of the initial weights and of the order of the images.
        epochs: How often the images are seen.
        batch: Images of one step.
        optimizer: Makes the optimizer; Adam 0.001 if omitted.
        schedule: See :class:`landscape_common.Classifier`.
    """

    def run() -> State:
        torch.manual_seed(seed)
        module = Classifier(network(), optimizer, schedule)
        fit(module, loader(*train, batch, shuffle=True), max_epochs=epochs)
        return module.network.state_dict()

    WORK.mkdir(exist_ok=True)
    return kept(f"study-{name}-seed{seed}", run)


def logits_of(
    network: nn.Module, state: Mapping[str, Tensor], x: Tensor
) -> Tensor:
    """Outputs of the network with these weights."""
    call = partial(torch.func.functional_call, network, dict(state))
    with torch.no_grad():
        return torch.cat([call((part,)) for part in x.split(2000)])


def scores(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Loss in nats and accuracy as a share."""
    right = (logits.argmax(1) == labels).float().mean()
    return {
        "loss": float(cross_entropy(logits, labels)),
        "accuracy": float(right),
    }


def arguments(text: str | None, **flags: str) -> argparse.Namespace:
    """The options of a study: ``--full`` for the sizes of the paper, on a GPU, and its own switches."""
    parser = argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--full",
        action="store_true",
        help="the sizes of the paper: for a GPU, days on a processor",
    )
    for name, meaning in flags.items():
        parser.add_argument(f"--{name}", help=meaning)
    return parser.parse_args()


def versions() -> dict[str, str]:
    """What the numbers were made with."""
    return {
        "lightning_rebasin": lightning_rebasin.__version__,
        "lightning": lightning.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def write(
    folder: Path,
    rows: Sequence[Mapping[str, Any]],
    **about: Any,
) -> None:
    """Write ``table.csv`` and ``numbers.json``.

    Args:
        folder: Where.
        rows: One mapping per line of the table, all with the same keys.
        **about: Recipe, seeds and published values, kept beside the rows.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    seconds = round(time.process_time())
    add_rows(
        folder / "numbers.json",
        {
            **about,
            "versions": versions(),
            "cpu_seconds": seconds,
            "rows": list(rows),
        },
    )
    for row in rows:
        print(
            "  ".join(f"{key} {_short(value)}" for key, value in row.items())
        )


def _short(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
