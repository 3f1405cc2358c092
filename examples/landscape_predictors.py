"""Predicted against measured barriers over training, and features along two runs (MNIST, small networks).

    python examples/landscape_predictors.py --data-dir DIR      # DIR holds the four MNIST idx files

For a perceptron (784-64-64-10) with tanh and with rectifiers and for a small convolutional network, trainings are
compared at several steps (Adam 1e-3, batch 100, 10,000 images):

- *shared*: one initialisation, two orders of the data;
- *independent*: two initialisations;
- *matched*: the independent pair, the second one permuted to be near the first.

``predict_barrier`` on 500 test images gives the measured barrier of the loss and what derivatives say about it.  All
numbers go to examples/results/landscape_predictors/predictors.csv, correlations to numbers.json, the scatter to
scatter.png.  ``--part features`` follows a pair of shared start with LandscapeFeatures (features.csv, features.png).
Rows that are in the CSV file already are kept, so that ``--part "tanh perceptron"`` and so on may run one by one.
About two minutes on one core.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer, seed_everything
from matplotlib.figure import Figure
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Subset, TensorDataset

from lightning_rebasin import (
    CheckpointSnapshot,
    LandscapeFeatures,
    infer_spec,
    match_weights,
    predict_barrier,
)
from lightning_rebasin.demo.data import Classification, idx_folder
from lightning_rebasin.demo.model import Classifier

RESULTS = Path(__file__).parent / "results" / "landscape_predictors"
STEPS = (0, 10, 30, 100, 300, 1000)
PREDICTORS = ("by slopes", "by curvatures", "quintic", "Taylor", "bound")
#: Columns of the table that hold no numbers.
WORDS = ("network", "pair")
KINDS = ("shared", "independent", "matched")
State = Mapping[str, Tensor]


def perceptron(activation: Callable[[], nn.Module]) -> nn.Module:
    """784-64-64-10."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(784, 64),
        activation(),
        nn.Linear(64, 64),
        activation(),
        nn.Linear(64, 10),
    )


def convolutional() -> nn.Module:
    """Two convolutions and two linear layers."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 28, 28)),
        nn.Conv2d(1, 8, 5, stride=2),
        nn.ReLU(),
        nn.Conv2d(8, 16, 5, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 32),
        nn.ReLU(),
        nn.Linear(32, 10),
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "tanh perceptron": lambda: perceptron(nn.Tanh),
    "ReLU perceptron": lambda: perceptron(nn.ReLU),
    "convolutional": convolutional,
}


def score(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross-entropy of a batch."""
    return cross_entropy(module(batch[0]), batch[1])


def trajectory(
    make: Callable[[], nn.Module], data: TensorDataset, init: int, order: int
) -> dict[int, State]:
    """The weights at every step of :data:`STEPS`, with seeds for the initialisation and for the order of the data."""
    torch.manual_seed(init)
    net = make()
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    generator = torch.Generator().manual_seed(order)
    found = {}
    step = 0
    while True:
        loader = DataLoader(data, 100, shuffle=True, generator=generator)
        for batch in loader:
            if step in STEPS:
                weights = net.state_dict().items()
                found[step] = {k: v.clone() for k, v in weights}
            if step == max(STEPS):
                return found
            optimizer.zero_grad()
            score(net, batch).backward()
            optimizer.step()
            step += 1


def pairs(
    make: Callable[[], nn.Module], data: TensorDataset, seed: int
) -> Iterator[tuple[str, int, State, State]]:
    """All pairs: kind, step, and both ends."""
    first = trajectory(make, data, init=seed, order=seed)
    second = trajectory(make, data, init=seed, order=seed + 1)
    apart = trajectory(make, data, init=seed + 1, order=seed + 1)
    spec = infer_spec(make(), data[:2][0])
    for step in STEPS:
        a = first[step]
        if step:
            yield "shared", step, a, second[step]
        yield "independent", step, a, apart[step]
        match = match_weights(spec, a, apart[step])
        yield "matched", step, a, match.transform.apply(apart[step])


def measure(
    data: Classification, name: str, seed: int
) -> list[dict[str, Any]]:
    """One row per pair of a network."""
    train = TensorDataset(*data.train[:10000])
    test = [data.test[:500]]
    make = NETWORKS[name]
    rows = []
    for kind, step, a, b in pairs(make, train, seed):
        found = predict_barrier(make(), a, b, test, loss=score, by_layer=False)
        row = {"network": name, "seed": seed, "pair": kind}
        row |= {"step": step, "distance": found.distance}
        rows.append(row | found.barriers())
        print(name, seed, kind, step, found, flush=True)
    return rows


def read_rows(path: Path) -> list[dict[str, Any]]:
    """What an earlier run measured."""
    if not path.exists():
        return []
    rows = []
    with path.open(newline="") as file:
        for text in csv.DictReader(file):
            row: dict[str, Any] = {}
            for name, value in text.items():
                row[name] = value if name in WORDS else float(value)
            rows.append(row)
    return rows


def agreement(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """How each predictor agrees with the measured barrier."""
    measured = np.array([row["measured"] for row in rows])
    found = {}
    for name in PREDICTORS:
        predicted = np.array([row[name] for row in rows])
        errors = np.abs(predicted - measured)
        found[name] = {
            "Pearson": float(np.corrcoef(measured, predicted)[0, 1]),
            "Spearman": float(spearmanr(measured, predicted).statistic),
            "median absolute error": float(np.median(errors)),
        }
    return found


def scatter(rows: list[dict[str, Any]], path: Path) -> None:
    """One panel per predictor; colours are kinds of pairs, markers are networks."""
    figure = Figure(figsize=(17, 4.2), layout="constrained", dpi=110)
    panels = figure.subplots(1, len(PREDICTORS))
    colours = dict(zip(KINDS, ("#0072B2", "#D55E00", "#009E73"), strict=True))
    markers = dict(zip(NETWORKS, ("o", "s", "^"), strict=True))
    for axes, name in zip(panels, PREDICTORS, strict=True):
        for row in rows:
            axes.plot(
                row["measured"],
                row[name],
                markers[row["network"]],
                color=colours[row["pair"]],
                markersize=3 + math.log10(1 + row["step"]),
                alpha=0.7,
            )
        limits = (-0.02, 1.2 * max(row["measured"] for row in rows))
        axes.plot(limits, limits, color="0.6", linewidth=0.8, zorder=0)
        for scale in (axes.set_xscale, axes.set_yscale):
            scale("symlog", linthresh=0.01)
        axes.set_xlabel("measured barrier")
        axes.set_ylabel("predicted barrier")
        rank = agreement(rows)[name]["Spearman"]
        axes.set_title(f"{name}: rank correlation {rank:.3f}", fontsize=10)
        axes.grid(visible=True, color="0.92")
    for label, colour in colours.items():
        panels[0].plot([], [], "o", color=colour, label=label)
    for label, marker in markers.items():
        panels[0].plot([], [], marker, color="0.4", label=label)
    panels[0].legend(fontsize=8)
    figure.savefig(path)


def features(data: Classification, output: Path) -> None:
    """Two runs of one start, the second one recorded against the first."""
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    runs = output / "runs"
    shutil.rmtree(runs, ignore_errors=True)
    train = Subset(data.train, range(10000))
    test = DataLoader(Subset(data.test, range(500)), 250)
    for order, name in enumerate("ab"):
        seed_everything(0, verbose=False)
        model = Classifier(features=784, width=64, depth=2, classes=10)
        callback = LandscapeFeatures(runs / "a" / "snapshots")
        if name == "a":
            callback = CheckpointSnapshot(runs / "a" / "snapshots")
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=12,
            logger=False,
            default_root_dir=runs / name,
            callbacks=[callback],
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            num_sanity_val_steps=0,
        )
        generator = torch.Generator().manual_seed(order)
        trainer.fit(
            model,
            DataLoader(train, 100, shuffle=True, generator=generator),
            test,
        )
    for name in ("features.csv", "features.png"):
        shutil.copyfile(runs / "b" / name, output / name)
    shutil.rmtree(runs)


def main() -> None:
    """Measure, correlate, draw."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 10])
    parser.add_argument("--part", choices=("features", *NETWORKS))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    data = idx_folder(options.data_dir)
    if options.part in (None, "features"):
        features(data, options.output)
    file = options.output / "predictors.csv"
    rows = read_rows(file)
    known = {(row["network"], int(row["seed"])) for row in rows}
    for name in NETWORKS:
        for seed in options.seeds:
            if options.part in (None, name) and (name, seed) not in known:
                rows += measure(data, name, seed)
    if rows:
        write(rows, options.output)


def write(rows: list[dict[str, Any]], output: Path) -> None:
    """The table, the correlations, the picture."""
    with (output / "predictors.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    numbers: dict[str, Any] = {"pairs": len(rows), "all": agreement(rows)}
    for column, names in (("pair", KINDS), ("network", NETWORKS)):
        for name in names:
            own = [row for row in rows if row[column] == name]
            if own:
                numbers[name] = agreement(own)
    numbers["bound holds"] = sum(r["bound"] >= r["measured"] for r in rows)
    text = json.dumps(numbers, indent=1) + "\n"
    (output / "numbers.json").write_text(text)
    scatter(rows, output / "scatter.png")
    print(text)


if __name__ == "__main__":
    main()
