"""A Bezier curve between two CIFAR-10 ResNet-20s that other people trained, beside both straight lines.

    python examples/landscape_curve_resnet20.py            trains the curve (some minutes) and measures all three paths
    python examples/landscape_curve_resnet20.py --train    only trains; the next run measures

Checkpoints a and b of the shared data.  The bend starts on the matched segment and is trained for EPOCHS epochs on the
first IMAGES training images with flips and shifts.  Test error is measured on TEST_IMAGES images with batch-norm
statistics re-estimated at every t.  Writes examples/results/landscape_curve_resnet20: results.json, *.csv and path.png.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import torch
from landscape_common import (
    RESULTS,
    WORK,
    Classifier,
    ResNet20,
    State,
    add_rows,
    cifar10,
    fit,
    flip_and_crop,
    load_weights,
    loader,
    normalise,
    shared_path,
    timed,
)
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_rebasin import CurveModule, measure_path
from lightning_rebasin.landscape import PathCurve
from lightning_rebasin.plotting import plot_barriers

FOLDER = RESULTS / "landscape_curve_resnet20"
IMAGES, EPOCHS, BATCH, LR = 6000, 8, 128, 0.05
TEST_IMAGES, RESET_IMAGES = 2000, 1000
#: How many t of each path are measured.
POINTS = {"curve": 61, "matched": 21, "naive": 21}


def images(split: str, count: int) -> tuple[Tensor, Tensor]:
    """Normalised images in the memory format that is fast on processors, and labels."""
    pixels, labels = cifar10(split, count)
    normal = normalise(pixels, "cifar10-resnet20")
    return normal.contiguous(memory_format=torch.channels_last), labels


def network() -> Classifier:
    """The network of the checkpoints."""
    module = Classifier(ResNet20(), augment=flip_and_crop)
    module.example_input_array = torch.zeros(2, 3, 32, 32)
    return module


def end(name: str) -> State:
    """The weights of one checkpoint, by the names of the module."""
    path = shared_path(f"data/checkpoints/cifar10-resnet20/{name}.th")
    module = network()
    module.network.load_state_dict(load_weights(path), strict=False)
    return module.state_dict()


def decay(epoch: int) -> float:
    """Full rate to one half, then linearly to 1 % at 90 % (Garipov et al.)."""
    share = epoch / EPOCHS
    return min(1.0, max(0.01, 1 - 0.99 * (share - 0.5) / 0.4))


def train(ends: list[State]) -> CurveModule:
    """The trained curve, from the last run if it was kept."""
    path = WORK / "resnet20-curve.ckpt"
    if path.exists():
        return CurveModule.load_from_checkpoint(
            path, model=network(), ends=ends
        )
    WORK.mkdir(exist_ok=True)
    curve = CurveModule(
        network(),
        ends,
        start="matched",
        optimizer=partial(torch.optim.SGD, lr=LR, momentum=0.9),
        lr_scheduler=partial(
            torch.optim.lr_scheduler.LambdaLR, lr_lambda=decay
        ),
        weight_decay=1e-4,
        seed=0,
    )
    torch.manual_seed(0)
    seconds: dict[str, float] = {"threads": torch.get_num_threads()}
    batches = loader(*images("train", IMAGES), BATCH, shuffle=True)
    with timed(seconds, "training"):
        fit(curve, batches, max_epochs=EPOCHS)
    curve.trainer.save_checkpoint(path)
    add_rows(FOLDER / "results.json", {"seconds": seconds})
    return curve


def measure(
    name: str, path: object, test: DataLoader[Any], reset: list[Any]
) -> PathCurve:
    """One path, from the last run if it was measured then."""
    file = FOLDER / f"{name}.json"
    if not file.exists():
        curve = measure_path(
            network(), path, test, POINTS[name], batch_norm=reset
        )
        curve.to_json(file)
        curve.to_csv(FOLDER / f"{name}.csv")
    return PathCurve.from_json(file)


def summary(curve: PathCurve) -> dict[str, float]:
    """Test errors in percent, and the length of the path."""
    errors = [100 * (1 - value) for value in curve.values["accuracy"]]
    return {
        "points": len(errors),
        "error of a": errors[0],
        "error of b": errors[-1],
        "largest error": max(errors),
        "mean error": sum(errors) / len(errors),
        "largest loss": max(curve.values["loss"]),
        "length": curve.normalised_length,
    }


def main() -> None:
    """Train, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", action="store_true", help="only train")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    ends = [end("a"), end("b")]
    curve = train(ends)
    if args.train:
        return
    test = loader(*images("test", TEST_IMAGES), 250)
    reset = list(loader(*images("train", RESET_IMAGES), 250))
    paths = {
        "curve": curve.path,
        "matched": curve.ends.states,
        "naive": ends,
    }
    curves = {}
    for name, path in paths.items():
        curves[name] = measure(name, path, test, reset)
        add_rows(FOLDER / "results.json", {name: summary(curves[name])})
        print(name, summary(curves[name]))
    title = "ResNet-20 on CIFAR-10, statistics re-estimated at every t"
    plot_barriers(curves, path=FOLDER / "path.png", title=title)


if __name__ == "__main__":
    main()
