"""Two CIFAR-10 ResNet-20s that other people trained: which layers make the barrier, and the line at 61 points.

Run from the repository with the shared data beside it (or REBASIN_SHARED set); one part takes two to five minutes on
one core:

    python examples/landscape_resnet20.py single
    python examples/landscape_resnet20.py cumulative --test 100 --train 200
    python examples/landscape_resnet20.py path

The pair is a, b of cifar10-resnet20, as they are and matched by weights, each with interpolated and with re-estimated
batch-norm statistics ("reset").  Everything goes to examples/results/landscape_resnet20: the values as JSON and CSV,
the pictures, and numbers-<part>.json with what the documentation cites.  Results of layers that are there
already are kept.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from helpers.data import cifar10, normalise
from helpers.models import ResNet20, load_weights
from helpers.shared import shared_path

from lightning_rebasin import (
    infer_spec,
    layer_barriers,
    match_weights,
    measure_path,
)
from lightning_rebasin.landscape.layer_values import LayerBarriers, Mode
from lightning_rebasin.plotting import plot_barriers, plot_layers

RESULTS = Path(__file__).resolve().parent / "results" / "landscape_resnet20"
CHECKPOINT = "cifar10-resnet20"
Weights = Mapping[str, Tensor]


def load(name: str) -> dict[str, Tensor]:
    """Weights of one checkpoint; the oldest one lacks batch counters, which the module supplies."""
    model = ResNet20()
    path = shared_path(f"data/checkpoints/{CHECKPOINT}/{name}.th")
    model.load_state_dict(load_weights(path), strict=False)
    return model.state_dict()


def batches(split: str, count: int, size: int = 100) -> list[Any]:
    """The first images of a split with their labels, normalised as the networks expect it."""
    images, labels = cifar10(split, count)
    images = normalise(images, CHECKPOINT)
    return list(zip(images.split(size), labels.split(size), strict=True))


def score(module: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Any]:
    """Cross-entropy and accuracy."""
    logits = module(batch[0])
    hits = (logits.argmax(1) == batch[1]).double()
    return {"loss": cross_entropy(logits, batch[1]), "accuracy": hits.mean()}


class Study:
    """The pair, naive and matched, and the images."""

    def __init__(self, train: int, test: int) -> None:
        self.module = ResNet20()
        self.test = batches("test", test)
        self.train = batches("train", train)
        a, b = load("a"), load("b")
        spec = infer_spec(self.module, self.test[0][0][:2])
        matched = match_weights(spec, a, b).transform.apply(b)
        self.pairs = {"naive": (a, b), "matched": (a, matched)}

    def variants(self) -> dict[str, tuple[Weights, Weights, list[Any] | None]]:
        """Both pairs, with interpolated and with re-estimated statistics."""
        found: dict[str, tuple[Weights, Weights, list[Any] | None]] = {}
        for name, (a, b) in self.pairs.items():
            found[name] = (a, b, None)
            found[f"{name}_reset"] = (a, b, self.train)
        return found


def layers(
    study: Study, mode: Mode, only: str | None = None
) -> dict[str, Any]:
    """Layer-wise barriers, α in {0, ½, 1}; those that an earlier run left are read."""
    found: dict[str, LayerBarriers] = {}
    for name, (a, b, statistics) in study.variants().items():
        file = RESULTS / f"{mode}-{name}.json"
        if file.exists():
            result = LayerBarriers.from_json(file)
        elif only in (None, name):
            result = layer_barriers(
                study.module, a, b, study.test,
                mode=mode, points=3, loss=score, batch_norm=statistics, progress=True,
            )  # fmt: skip
            result.to_json(file)
            result.to_csv(RESULTS / f"{mode}-{name}.csv")
        else:
            continue
        found[name] = result
        print(name, result)
    plot_layers(found, "loss", path=RESULTS / f"{mode}.png")
    numbers: dict[str, Any] = {}
    for name, result in found.items():
        heights = result.heights("loss")
        rows = zip(result.layers, heights["a"], heights["b"], strict=True)
        numbers[name] = {layer: [x, y] for layer, x, y in rows}
    return numbers


def path(study: Study) -> dict[str, Any]:
    """The straight line at 61 points."""
    curves, numbers = {}, {}
    for name, (a, b, statistics) in study.variants().items():
        curve = measure_path(
            study.module, [a, b], study.test, 61,
            loss=score, batch_norm=statistics, progress=True,
        )  # fmt: skip
        curve.to_json(RESULTS / f"path-{name}.json")
        curves[name] = curve
        print(name, curve)
        row = curve.values["accuracy"]
        numbers[name] = {
            "loss": curve.summary("loss")._asdict(),
            "accuracy": curve.summary("accuracy")._asdict(),
            "ends accuracy": [row[0], row[-1]],
            "midpoint accuracy": curve.midpoint("accuracy"),
            "barrier of loss": curve.height("loss"),
            "length": curve.length,
        }
    plot_barriers(curves, path=RESULTS / "path.png")
    return numbers


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=("single", "cumulative", "path"))
    parser.add_argument("--only", help="measure this variant of layers only")
    parser.add_argument("--train", type=int, default=500)
    parser.add_argument("--test", type=int, default=300)
    options = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    started = time.process_time()
    study = Study(options.train, options.test)
    if options.part == "path":
        numbers = path(study)
    else:
        numbers = layers(study, options.part, options.only)
    content = {
        "train images": options.train,
        "test images": options.test,
        "cpu seconds": round(time.process_time() - started),
        **numbers,
    }
    file = RESULTS / f"numbers-{options.part}.json"
    file.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
