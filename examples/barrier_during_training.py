"""The barrier between two trainings, epoch by epoch: Git Re-Basin's figure, live from two callbacks.

Two 784-512-512-512-10 networks are trained on MNIST from different seeds (Adam 1e-3, batch 500, pixels / 255).  The
first run only leaves snapshots.  The second one has a ``LossBarrier`` whose reference is the folder of these snapshots,
so that after every epoch the two networks are compared at the same step, as they are and re-matched.

    python examples/barrier_during_training.py --data-dir DIR      # DIR holds the four MNIST idx files

The results of a run are kept in ``results/barrier_during_training``.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import time
import warnings
from pathlib import Path

from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger

from lightning_rebasin import CheckpointSnapshot, LossBarrier, infer_spec
from lightning_rebasin.demo.data import Classification, idx_folder, loader
from lightning_rebasin.demo.model import Classifier
from lightning_rebasin.landscape import barrier_matrix, load_trajectory
from lightning_rebasin.plotting import plot_barriers, plot_history

HERE = Path(__file__).parent
METRICS = (
    "val_loss",
    "val_accuracy",
)  # the validation set is MNIST's test set


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
        model, loader(data.train, 500, seed=seed), loader(data.test, 500)
    )


def main() -> None:
    """Train twice, write CSV, JSON and pictures, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--data-dir",
        type=Path,
        required=True,
        help="folder with the four MNIST idx files",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=HERE / "results" / "barrier_during_training",
    )
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument(
        "--points",
        type=int,
        default=11,
        help="number of λ (the paper takes 25)",
    )
    parser.add_argument("--seeds", type=int, nargs=2, default=(0, 1))
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    runs = options.output / "runs"
    shutil.rmtree(runs, ignore_errors=True)
    data, started = idx_folder(options.data_dir), time.perf_counter()
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
    title = "Barrier between two MNIST MLPs at the same epoch"
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
        "recipe": "784-512-512-512-10, ReLU, Adam 1e-3, batch 500, pixels / 255, two seeds",
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
