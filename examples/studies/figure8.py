"""Git Re-Basin's figure 8: the barrier against the width of the network, with the control that needs no permutation.

    python examples/studies/figure8.py

The paper widens VGG16 and ResNet20; here MNIST perceptrons 784-w-w-w-10 of width 8 to 1024 are trained (10000 images,
30 epochs, SGD 0.1 with momentum and a cosine), with weight decay 1e-4 and 3e-3.  The control is that of "wide networks
without permutations" (ICLR 2026, arXiv 2510.08023): with strong decay wide networks are connected as they are, if the
midpoint's logits are divided by one temperature, fitted on held-out images.  Writes table.csv, numbers.json and
barriers.png to examples/results/studies/figure8.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from common import (
    RESULTS,
    State,
    arguments,
    images,
    logits_of,
    perceptron,
    scores,
    trained,
    write,
)
from landscape_common import cosine
from matplotlib.figure import Figure
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn.functional import cross_entropy

from lightning_rebasin import average, infer_spec, match_weights

FOLDER = RESULTS / "figure8"
WIDTHS = (8, 16, 32, 64, 128, 256, 512, 1024)
DECAYS = (1e-4, 3e-3)
RATE, BATCH = 0.1, 100
#: Images beside those of the training that the temperature is fitted on; the training's own are all right already, and
#: would make every network as sure as can be.
CALIBRATED = 2000
PUBLISHED = {
    "figure 8": "VGG16 and ResNet20: zero only when wide; width 1 fails",
    "control, MLP x16 MNIST, points of error / loss of the midpoint above the ends": {
        "without permutation": [0.52, 0.013],
        "after weight matching": [-0.03, -0.003],
    },
}


def temperature(logits: Tensor, labels: Tensor) -> float:
    """The T that makes the cross-entropy of ``logits / T`` lowest."""

    def loss(log: float) -> float:
        return float(cross_entropy(logits / math.exp(log), labels))

    found = minimize_scalar(loss, bounds=(-5, 5), method="bounded")
    return math.exp(found.x)


def calibrated(width: int, state: State, data: Mapping[str, Any]) -> Tensor:
    """Test logits divided by the temperature of held-out images."""
    network = perceptron(width)
    x, labels = data["held"]
    fitted = temperature(logits_of(network, state, x), labels)
    return logits_of(network, state, data["test"][0]) / fitted


def above(
    width: int, ends: list[State], data: Mapping[str, Any]
) -> dict[str, float]:
    """How much worse than the mean of its ends the midpoint is, plain and calibrated."""
    x, labels = data["test"]
    network = perceptron(width)
    middle = average(ends)
    plain = [scores(logits_of(network, s, x), labels) for s in (*ends, middle)]
    better = [
        scores(calibrated(width, s, data), labels) for s in (*ends, middle)
    ]
    first, second, mid = plain
    warm_first, warm_second, warm_mid = better
    right = (first["accuracy"] + second["accuracy"]) / 2
    warm = (warm_first["loss"] + warm_second["loss"]) / 2
    return {
        "points of error": 100 * (right - mid["accuracy"]),
        "loss": mid["loss"] - (first["loss"] + second["loss"]) / 2,
        "loss with temperature": warm_mid["loss"] - warm,
    }


def row(
    width: int, decay: float, count: int, epochs: int, data: Mapping[str, Any]
) -> dict[str, Any]:
    """One width and one weight decay."""
    sgd = partial(torch.optim.SGD, lr=RATE, momentum=0.9, weight_decay=decay)
    ends = []
    for seed in (0, 1):
        state = trained(
            f"figure8-{width}-{decay}-{count}-{epochs}",
            partial(perceptron, width),
            data["train"],
            seed=seed,
            epochs=epochs,
            batch=BATCH,
            optimizer=sgd,
            schedule=cosine,
        )
        ends.append(state)
    spec = infer_spec(perceptron(width), torch.zeros(2, 784))
    moved = match_weights(spec, *ends).permutation.apply(ends[1])
    x, labels = data["test"]
    outputs = [logits_of(perceptron(width), end, x) for end in ends]
    right = [scores(logits, labels)["accuracy"] for logits in outputs]
    naive = above(width, ends, data)
    matched = above(width, [ends[0], moved], data)
    return {
        "width": width,
        "decay": decay,
        "accuracy of the ends": sum(right) / 2,
        **{f"naive {key}": value for key, value in naive.items()},
        **{f"matched {key}": value for key, value in matched.items()},
    }


def plot(rows: list[dict[str, Any]]) -> None:
    """Loss above the ends against width, one panel per weight decay."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for panel, decay in enumerate(DECAYS):
        axes = figure.add_subplot(1, 2, panel + 1)
        own = [line for line in rows if line["decay"] == decay]
        widths = [line["width"] for line in own]
        for way, colour in (("naive", "C1"), ("matched", "C0")):
            for name, style in (
                ("loss", "-"),
                ("loss with temperature", "--"),
            ):
                heights = [line[f"{way} {name}"] for line in own]
                label = f"{way}, {name}"
                axes.plot(widths, heights, style, color=colour, label=label)
        axes.set_xscale("log", base=2)
        axes.axhline(0, color="grey", linewidth=0.8)
        axes.set_title(f"weight decay {decay:g}")
        axes.set_xlabel("width")
        axes.set_ylabel("midpoint's test loss above its ends'")
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside lower center", ncols=4
    )
    figure.savefig(FOLDER / "barriers.png", dpi=150)


def main() -> None:
    """Train, match, calibrate, write."""
    options = arguments(__doc__)
    count, epochs = (58000, 100) if options.full else (10000, 30)
    widths = (*WIDTHS, 2048, 8192) if options.full else WIDTHS
    everything = images("mnist", "train")
    held = slice(count, count + CALIBRATED)
    data = {
        "train": images("mnist", "train", count),
        "held": (everything[0][held], everything[1][held]),
        "test": images("mnist", "test"),
    }
    rows = []
    for decay in DECAYS:
        for width in widths:
            rows.append(row(width, decay, count, epochs, data))
    recipe = f"784-w-w-w-10, {count} images, {epochs} epochs, SGD {RATE} with momentum 0.9 and a cosine, batch {BATCH}"
    write(FOLDER, rows, recipe=recipe, seeds=[0, 1], published=PUBLISHED)
    plot(rows)


if __name__ == "__main__":
    main()
