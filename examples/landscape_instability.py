"""When are trainings stable to the noise of SGD?  LeNet-300-100 on MNIST, a narrow ResNet-20 on CIFAR-10.

    python examples/landscape_instability.py

Published (Frankle et al. 2020): LeNet on MNIST is stable at initialisation, ResNet-20 on CIFAR-10 only from iteration
2000 of 63000 on (3 %).  Here trainings are far shorter: LeNet sees 10000 images for 6 epochs, the ResNet, with 8, 16
and 32 channels, 1000 images for 8 epochs.  Writes lenet.json, resnet20.json, *.csv and instability.png to
examples/results/landscape_instability; runs are kept, so that the next call goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from landscape_common import (
    RESULTS,
    WORK,
    Classifier,
    ResNet20,
    add_rows,
    begin,
    check_budget,
    cifar10,
    cosine,
    flip_and_crop,
    loader,
    mnist_images,
    normalise,
)
from lightning.pytorch import Callback
from torch import nn

from lightning_rebasin import measure_instability
from lightning_rebasin.landscape import Instability
from lightning_rebasin.plotting import plot_instability

FOLDER = RESULTS / "landscape_instability"


def lenet() -> Classifier:
    """LeNet-300-100 with Adam 0.0012, as published."""
    layers = [
        nn.Linear(784, 300),
        nn.ReLU(),
        nn.Linear(300, 100),
        nn.ReLU(),
        nn.Linear(100, 10),
    ]
    adam = partial(torch.optim.Adam, lr=1.2e-3)
    return Classifier(nn.Sequential(*layers), adam)


def resnet() -> Classifier:
    """A ResNet-20 of half the width, with the rates of its paper and a cosine."""
    sgd = partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=1e-4)
    return Classifier(ResNet20(width=8), sgd, cosine, flip_and_crop)


class InTime(Callback):
    """Stops the program between runs if it has run long enough."""

    def on_fit_start(self, *_: Any) -> None:
        """Nothing is lost: finished runs are kept."""
        check_budget()


def on_mnist() -> Instability:
    """Two trainings, forked at initialisation and after 50 and 300 of 1002 steps."""
    train = loader(*mnist_images("train", 10000, flat=True), 60, shuffle=True)
    test = loader(*mnist_images("test", flat=True), 1000)
    return measure_instability(
        lenet,
        train,
        test,
        [0, 50, 300],
        max_epochs=6,
        seeds=(0, 1),
        folder=WORK / "instability-lenet",
        accelerator="cpu",
        callbacks=[InTime()],
    )


def on_cifar() -> Instability:
    """One training, forked at initialisation and after 40 of 80 steps."""
    pixels, labels = cifar10("train", 1000)
    images = normalise(pixels, "cifar10-resnet20")
    train = loader(images, labels, 100, shuffle=True)
    held_out, answers = cifar10("test", 1000)
    test = loader(normalise(held_out, "cifar10-resnet20"), answers, 500)
    return measure_instability(
        resnet,
        train,
        test,
        [0, 40],
        max_epochs=8,
        seeds=(0,),
        points=5,
        batch_norm=list(loader(images[:500], labels[:500], 250)),
        folder=WORK / "instability-resnet20",
        accelerator="cpu",
        callbacks=[InTime()],
    )


def main() -> None:
    """Train, measure, write."""
    begin()
    FOLDER.mkdir(parents=True, exist_ok=True)
    studies: dict[str, Callable[[], Instability]] = {
        "lenet": on_mnist,
        "resnet20": on_cifar,
    }
    found = {}
    for name, study in studies.items():
        start = time.process_time()
        found[name] = study()
        found[name].to_json(FOLDER / f"{name}.json")
        found[name].to_csv(FOLDER / f"{name}.csv")
        print(name, found[name], sep="\n")
        print("seconds of the processor", time.process_time() - start)
    labels = {
        "LeNet-300-100, MNIST": found["lenet"],
        "ResNet-20 of width 8, CIFAR-10": found["resnet20"],
    }
    plot_instability(labels, path=FOLDER / "instability.png")
    rows = {}
    for name, result in found.items():
        shares = dict(zip(result.forks, result.means, strict=True))
        rows[name] = {"steps": result.steps, "instability": shares}
    add_rows(FOLDER / "results.json", rows)


if __name__ == "__main__":
    main()
