"""Geodesics between two MNIST perceptrons that other people trained, from the naive and from the matched segment.

Run from the repository with the shared data beside it (or REBASIN_SHARED set):

    python examples/landscape_geodesic.py

The pair is a, b of mnist-mlp (784-400-200-100-10).  A chain of 6 pieces is trained for 200 steps (Adam 1e-4) on 2000
unlabelled training images; loss, accuracy and output lengths are measured on 1000 test images at 25 points.  Everything
goes to examples/results/landscape_geodesic.  Half a minute on an idle core.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from helpers.data import mnist, normalise
from helpers.models import load_weights, mnist_mlp
from helpers.shared import shared_path

from lightning_rebasin import (
    geodesic_length,
    geodesic_path,
    infer_spec,
    match_weights,
    measure_path,
)
from lightning_rebasin.landscape.paths import Line
from lightning_rebasin.plotting import (
    plot_barriers,
    plot_energies,
    plot_output_lengths,
)

RESULTS = Path(__file__).resolve().parent / "results" / "landscape_geodesic"
PIECES, STEPS, LR = 6, 200, 1e-4


def batches(split: str, count: int) -> list[tuple[Tensor, Tensor]]:
    """The first images of a split with their labels, as the networks expect them."""
    images, labels = mnist(split)
    images = normalise(images[:count], "mnist-mlp").flatten(1)
    pairs = zip(images.split(200), labels[:count].split(200), strict=True)
    return list(pairs)


def score(module: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Any]:
    """Cross-entropy and accuracy."""
    logits = module(batch[0])
    hits = (logits.argmax(1) == batch[1]).double()
    return {"loss": cross_entropy(logits, batch[1]), "accuracy": hits.mean()}


def main() -> None:
    """Train both chains, measure them and both lines."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    started = time.process_time()
    net = mnist_mlp()
    folder = shared_path("data/checkpoints/mnist-mlp")
    a, b = (load_weights(file) for file in sorted(folder.glob("[ab].*")))
    train, test = batches("train", 2000), batches("test", 1000)
    spec = infer_spec(net, train[0][0][:2])
    matched = match_weights(spec, a, b).transform.apply(b)
    chains, curves, lengths, numbers = {}, {}, {}, {}
    for name, end in {"naive": b, "matched": matched}.items():
        chain = geodesic_path(
            net,
            a,
            end,
            train,
            pieces=PIECES,
            steps=STEPS,
            lr=LR,
            progress=True,
        )
        chains[name] = chain
        chain.to_csv(RESULTS / f"energy-{name}.csv")
        paths = {f"{name} line": Line(a, end), f"{name} geodesic": chain.path}
        for label, path in paths.items():
            curve = measure_path(net, path, test, 25, loss=score)
            length = geodesic_length(net, path, test, 25)
            file = label.replace(" ", "-")
            curve.to_json(RESULTS / f"{file}.json")
            length.to_json(RESULTS / f"{file}-outputs.json")
            curves[label], lengths[label] = curve, length
            numbers[label] = {
                "highest loss": max(curve.values["loss"]),
                "lowest accuracy": min(curve.values["accuracy"]),
                "energy": length.energy,
                "output length / ends": length.normalised_length,
                "weight length / straight": curve.normalised_length,
            }
            print(label, numbers[label])
    plot_energies(chains, path=RESULTS / "energy.png")
    plot_output_lengths(lengths, path=RESULTS / "outputs.png")
    plot_barriers(curves, path=RESULTS / "path.png")
    seconds = round(time.process_time() - started)
    content = {"pieces": PIECES, "steps": STEPS, "lr": LR}
    content["cpu seconds"] = seconds
    text = json.dumps(content | numbers, indent=1) + "\n"
    (RESULTS / "numbers.json").write_text(text)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
