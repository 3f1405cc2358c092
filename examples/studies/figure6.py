"""Git Re-Basin's figure 6: the barrier between two trainings, epoch by epoch, live from two callbacks.

    python examples/studies/figure6.py --dataset mnist
    python examples/studies/figure6.py --dataset cifar10 --epochs 20

Two perceptrons with three hidden layers of 512 units are trained from different seeds (Adam 1e-3, pixels / 255, batch
500 for MNIST and 100 for CIFAR-10, which is augmented in the paper and not here).  The first run only leaves snapshots.
The second one has a ``LossBarrier`` whose reference is the folder of these snapshots, so that after every epoch the two
networks are compared at the same step, as they are and re-matched.

Published: MNIST ≈ 0.6 at epoch 1 and 0 at epoch 25, CIFAR-10 ≈ 0.31 and ≈ 0.015 at epoch 22, both after matching.  The
results of a run are kept in ``examples/results/studies/figure6_mnist`` and ``figure6_cifar10``.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import time
import warnings
from pathlib import Path

from common import RESULTS, images, versions
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import TensorDataset

from lightning_rebasin import CheckpointSnapshot, LossBarrier, infer_spec
from lightning_rebasin.demo.data import Classification, loader
from lightning_rebasin.demo.model import Classifier
from lightning_rebasin.landscape import barrier_matrix, load_trajectory
from lightning_rebasin.plotting import plot_barriers, plot_history

#: The validation set is the test set.
METRICS = ("val_loss", "val_accuracy")
#: Images of a step, and training images that are used without --full.
SIZES = {"mnist": (500, 60000), "cifar10": (100, 20000)}
NAMES = {"mnist": "MNIST", "cifar10": "CIFAR-10"}


def data_of(name: str, *, full: bool) -> Classification:
    """Training and test images of the shared data, flat."""
    count = None if full else SIZES[name][1]
    parts = []
    for split in ("train", "test"):
        parts.append(TensorDataset(*images(name, split, count)))
    return Classification(name, *parts)


def train(
    data: Classification,
    seed: int,
    epochs: int,
    folder: Path,
    callbacks: list[Callback],
) -> None:
    """One training; its snapshots and logs go to ``folder``."""
    seed_everything(seed, verbose=False)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=CSVLogger(folder, name="", version="logs"),
        callbacks=[
            CheckpointSnapshot(folder / "snapshots", every_n_epochs=1),
            *callbacks,
        ],
        enable_checkpointing=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    model = Classifier(
        features=data.features, width=512, depth=3, classes=data.classes
    )
    trainer.fit(
        model,
        loader(data.train, SIZES[data.name][0], seed=seed),
        loader(data.test, 500),
    )


def main() -> None:
    """Train twice, write CSV, JSON and pictures, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--dataset", choices=SIZES, default="mnist")
    parser.add_argument(
        "--full", action="store_true", help="all training images"
    )
    parser.add_argument("--output", type=Path, help="folder of the results")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument(
        "--points",
        type=int,
        default=11,
        help="number of λ (the paper takes 25)",
    )
    parser.add_argument("--seeds", type=int, nargs=2, default=(0, 1))
    options = parser.parse_args()
    if options.output is None:
        options.output = RESULTS / f"figure6_{options.dataset}"
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    runs = options.output / "runs"
    shutil.rmtree(runs, ignore_errors=True)
    data = data_of(options.dataset, full=options.full)
    started = time.perf_counter()
    train(data, options.seeds[0], options.epochs, runs / "a", [])
    barrier = LossBarrier(
        runs / "a" / "snapshots",
        "both",
        points=options.points,
        metrics=METRICS,
    )
    train(data, options.seeds[1], options.epochs, runs / "b", [barrier])
    report(options, data, barrier, round(time.perf_counter() - started))
    shutil.rmtree(runs)


def report(
    options: argparse.Namespace,
    data: Classification,
    barrier: LossBarrier,
    seconds: int,
) -> None:
    """Write what was measured."""
    output, runs = options.output, options.output / "runs"
    shutil.copyfile(runs / "b" / "logs" / "barrier.csv", output / "curves.csv")
    epochs = [m.epoch + 1 for m in barrier.measurements]
    heights = {
        label: {
            name: [m.curves[label].height(name) for m in barrier.measurements]
            for name in METRICS
        }
        for label in ("naive", "matched")
    }
    with (output / "history.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(
            [
                "epoch",
                *(f"{label}_{name}" for label in heights for name in METRICS),
                "moved",
            ]
        )
        for i, epoch in enumerate(epochs):
            row = [
                heights[label][name][i]
                for label in heights
                for name in METRICS
            ]
            writer.writerow([epoch, *row, barrier.measurements[i].moved])
            print(
                f"epoch {epoch:2}: test-loss barrier {row[0]:.4f} naive, {row[2]:.4f} matched"
            )
    losses = {label: heights[label]["val_loss"] for label in heights}
    name = NAMES[data.name]
    title = f"Barrier between two {name} MLPs at the same epoch"
    plot_history(
        epochs,
        losses,
        path=output / "barrier_over_training.png",
        title=title,
        xlabel="epoch",
        ylabel="test-loss barrier",
    )
    last = barrier.measurements[-1].curves
    plot_barriers(
        last,
        path=output / "last_epoch.png",
        title=f"after epoch {epochs[-1]} (validation = test set)",
    )
    chosen = {epoch for epoch in (1, 3, 8, 15) if epoch <= options.epochs}
    per_epoch = barrier.measurements[0].step
    a, b = (
        [
            s
            for s in load_trajectory(runs / n / "snapshots")
            if s.step // per_epoch in chosen
        ]
        for n in ("a", "b")
    )
    model = Classifier(
        features=data.features, width=512, depth=3, classes=data.classes
    )
    spec = infer_spec(model)
    matrix = barrier_matrix(
        model,
        a,
        b,
        loader(data.test, 500),
        spec=spec,
        points=5,
        metric="val_loss",
        progress=True,
    )
    matrix.to_csv(output / "matrix.csv")
    matrix.plot(output / "matrix.png")
    numbers = {
        "recipe": (
            f"{data.features}-512-512-512-10, ReLU, Adam 1e-3, batch {SIZES[data.name][0]}, pixels / 255, "
            f"{len(data.train)} images, two seeds"
        ),
        "versions": versions(),
        "seeds": list(options.seeds),
        "lambdas": len(last["naive"].lambdas),
        "convention": "mean",
        "naive_test_loss_barrier": losses["naive"],
        "matched_test_loss_barrier": losses["matched"],
        "lowest_naive": min(losses["naive"]),
        "matched_at_first_epoch": losses["matched"][0],
        "highest_matched_from_epoch_8": max(
            losses["matched"][7:], default=None
        ),
        "ends_test_loss": [
            last["naive"].values["val_loss"][0],
            last["naive"].values["val_loss"][-1],
        ],
        "ends_test_accuracy": [
            last["naive"].values["val_accuracy"][0],
            last["naive"].values["val_accuracy"][-1],
        ],
        "midpoint_test_accuracy": {
            label: curve.midpoint("val_accuracy")
            for label, curve in last.items()
        },
        "seconds": seconds,
    }
    (output / "numbers.json").write_text(json.dumps(numbers, indent=1) + "\n")


if __name__ == "__main__":
    main()
