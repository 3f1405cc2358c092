"""Star-shaped connectivity of MNIST perceptrons 784-500-300-10, beside the published numbers.

    python examples/landscape_star_fnn.py

Trains two networks from different starts and a centre between them, without any matching.  Writes
examples/results/landscape_star_fnn/results.json, path.csv and path.png; about six minutes on one core.

Published (Lin, Li, Wu 2024, table 1, training data, 200 epochs of Adam 0.01, one minimum and three t's per step):
largest loss on the line 1.25, over the centre 1.1e-3; lowest accuracy 68.1 and 99.96 %; length ratio 1.003.
"""

from __future__ import annotations

import copy
from functools import partial

import torch
from landscape_common import (
    RESULTS,
    Classifier,
    State,
    add_rows,
    begin,
    cosine,
    fit,
    kept,
    kept_curve,
    loader,
    mnist_images,
)
from torch import nn

from lightning_rebasin import StarModule, measure_path
from lightning_rebasin.landscape import PathCurve
from lightning_rebasin.plotting import plot_barriers

FOLDER = RESULTS / "landscape_star_fnn"
EPOCHS, STAR_EPOCHS, BATCH, POINTS = 8, 3, 256, 21
#: Training images that paths are measured on.
MEASURED = 5000
#: Learning rate of Adam and λ of each centre: the published rate, and a slower one.
CENTRES = {
    "Adam 0.01": (0.01, 0.0),
    "Adam 0.001": (0.001, 0.0),
}


def network() -> Classifier:
    """A perceptron with two hidden layers."""
    layers = [
        nn.Linear(784, 500),
        nn.ReLU(),
        nn.Linear(500, 300),
        nn.ReLU(),
        nn.Linear(300, 10),
    ]
    return Classifier(nn.Sequential(*layers), schedule=cosine)


TRAIN = mnist_images("train", flat=True)
TEST = mnist_images("test", flat=True)


def trained(seed: int) -> State:
    """Weights of one training."""
    torch.manual_seed(seed)
    module = network()
    batches = loader(*TRAIN, BATCH, shuffle=True)
    fit(module, batches, max_epochs=EPOCHS)
    return copy.deepcopy(module.state_dict())


def centre(ends: list[State], lr: float, proximity: float) -> State:
    """The centre of the ends."""
    torch.manual_seed(0)
    star = StarModule(
        network(),
        ends,
        optimizer=partial(torch.optim.Adam, lr=lr),
        lr_scheduler=partial(
            torch.optim.lr_scheduler.ExponentialLR, gamma=0.5
        ),
        proximity=proximity,
    )
    batches = loader(*TRAIN, BATCH, shuffle=True)
    fit(star, batches, max_epochs=STAR_EPOCHS)
    return star.center_state_dict()


def summary(train: PathCurve, test: PathCurve) -> dict[str, float]:
    """The numbers that were published, and the same on test images."""
    return {
        "largest train loss": max(train.values["loss"]),
        "lowest train accuracy": min(train.values["accuracy"]),
        "largest test loss": max(test.values["loss"]),
        "lowest test accuracy": min(test.values["accuracy"]),
        "length": train.normalised_length,
    }


def main() -> None:
    """Train, measure, write."""
    begin()
    ends = [kept(f"fnn-{seed}", lambda s=seed: trained(s)) for seed in (0, 1)]
    a, b = ends
    paths = {"line": [a, b]}
    for name, (lr, proximity) in CENTRES.items():
        middle = kept(
            f"fnn-centre-{name}",
            lambda x=lr, y=proximity: centre(ends, x, y),
        )
        paths[name] = [a, middle, b]
    curves = {}
    some = tuple(tensor[:MEASURED] for tensor in TRAIN)
    for name, path in paths.items():
        measured = []
        for split, data in (("train", some), ("test", TEST)):
            batches = loader(*data, 2000)
            curve = kept_curve(
                f"fnn-{name}-{split}",
                lambda p=path, b=batches: measure_path(
                    network(), p, b, POINTS
                ),
            )
            measured.append(curve)
        curves[name] = measured[0]
        add_rows(
            FOLDER / "results.json",
            {name: {**summary(*measured), "seeds": [0, 1]}},
        )
        print(name, summary(*measured))
    # The line rises a thousand times higher than the way over a centre: both need a logarithmic axis.
    figure = plot_barriers(
        curves, title="784-500-300-10 on MNIST, training data"
    )
    figure.axes[0].set_yscale("log")
    figure.savefig(FOLDER / "path.png")
    for name, curve in curves.items():
        curve.to_csv(FOLDER / f"{name.lower().replace(' ', '-')}.csv")


if __name__ == "__main__":
    main()
