"""A Bezier curve between two CIFAR-10 ResNet-20s that other people trained, beside both straight lines.

    python examples/landscape_curve_resnet20.py

Checkpoints a and b of the shared data.  The bend starts on the matched segment and is trained for EPOCHS epochs on the
first IMAGES training images with flips and shifts, at the published schedule.  Test error is measured on TEST_IMAGES
images with batch-norm statistics re-estimated at every t.  Writes results.json, *.csv and path.png to
examples/results/landscape_curve_resnet20; half an hour on one idle core.  Interrupted runs go on
(``--seconds 300`` stops by itself).
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from landscape_common import (
    RESULTS,
    WORK,
    Classifier,
    ResNet20,
    State,
    add_rows,
    begin,
    check_budget,
    cifar10,
    fit,
    flip_and_crop,
    kept_curve,
    load_weights,
    loader,
    normalise,
    shared_path,
)
from lightning.pytorch import Callback, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_rebasin import CurveModule, measure_path
from lightning_rebasin.files import atomic_path
from lightning_rebasin.landscape import PathCurve
from lightning_rebasin.landscape.lengths import arc_lengths
from lightning_rebasin.landscape.path_curve import as_path
from lightning_rebasin.landscape.weights import parameter_names
from lightning_rebasin.plotting import plot_barriers

FOLDER = RESULTS / "landscape_curve_resnet20"
IMAGES, EPOCHS, BATCH, LR = 20000, 12, 128, 0.05
TEST_IMAGES, RESET_IMAGES, THREADS = 2000, 500, 1
#: How many t are measured at a time.
PART = 12
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
    """The trained curve; a run that was interrupted goes on with the epoch that it was in."""
    file = WORK / "resnet20-curve.ckpt"
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
    batches = loader(*images("train", IMAGES), BATCH, shuffle=True)
    before = str(file) if file.exists() else None
    fit(
        curve,
        batches,
        start=before,
        max_epochs=EPOCHS,
        callbacks=[KeepEpochs(file)],
    )
    return CurveModule.load_from_checkpoint(file, model=network(), ends=ends)


class KeepEpochs(Callback):
    """Writes a checkpoint and the time of every epoch.

    Args:
        file: Where.
    """

    def __init__(self, file: Path) -> None:
        self._file = file

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        """Stop if this run was long enough."""
        check_budget()
        self._begin = time.perf_counter(), time.process_time()

    def on_train_epoch_end(self, trainer: Trainer, *_: Any) -> None:
        """Write."""
        wall = time.perf_counter() - self._begin[0]
        processor = time.process_time() - self._begin[1]
        with atomic_path(self._file) as temporary:
            trainer.save_checkpoint(temporary)
        times = {
            "wall": round(wall, 1),
            "processor": round(processor, 1),
            "threads": torch.get_num_threads(),
        }
        name = f"seconds of epoch {trainer.current_epoch}"
        add_rows(FOLDER / "results.json", {name: times})


def measure(
    name: str, path: object, test: DataLoader[Any], reset: list[Any]
) -> PathCurve:
    """One path, some t at a time, from the last run if they were measured then."""
    last = POINTS[name] - 1
    parts = []
    for first in range(0, last + 1, PART):
        grid = [k / last for k in range(first, min(first + PART, last + 1))]
        part = kept_curve(
            f"resnet20-{name}-{first}",
            lambda g=grid: measure_path(
                network(), path, test, g, batch_norm=reset
            ),
        )
        parts.append(part)
    return joined(as_path(path), parts)


def joined(route: Any, parts: list[PathCurve]) -> PathCurve:
    """One curve of several on the same path; each has the ends and the middle beside its own t."""
    rows = {}
    for part in parts:
        for k, t in enumerate(part.lambdas):
            rows[t] = (part, k)
    ts = sorted(rows)
    values = {
        name: tuple(rows[t][0].values[name][rows[t][1]] for t in ts)
        for name in parts[0].values
    }
    names = parameter_names(network())
    lengths = arc_lengths([route.at(t) for t in ts], names)
    return PathCurve(
        tuple(ts),
        values,
        samples=parts[0].samples,
        lengths=tuple(lengths),
        straight=parts[0].straight,
    )


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
    begin()
    torch.set_num_threads(THREADS)
    ends = [end("a"), end("b")]
    curve = train(ends)
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
        curves[name].to_csv(FOLDER / f"{name}.csv")
        print(name, summary(curves[name]))
    title = "ResNet-20 on CIFAR-10, statistics re-estimated at every t"
    plot_barriers(curves, path=FOLDER / "path.png", title=title)


if __name__ == "__main__":
    main()
