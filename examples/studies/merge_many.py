"""Merge five and ten MNIST perceptrons into one (Git Re-Basin's "merge many", algorithm 3).

    python examples/studies/merge_many.py          # ten trainings of 20 epochs on 20000 images: minutes on one core

Published for five networks of 100 epochs on 60000 images: test loss .0727 where the ends have .1108 to .1531, accuracy
.9831 where they have .9854 to .9871.  Writes table.csv and numbers.json to examples/results/studies/merge_many.
"""

from __future__ import annotations

from functools import partial

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

from lightning_rebasin import average, infer_spec, match_many

WIDTH, BATCH = 512, 500
METHODS = ("merge_many", "cycle_consistent")
PUBLISHED = {
    "networks": 5,
    "ends loss": [0.1108, 0.1531],
    "ends accuracy": [0.9854, 0.9871],
    "merged loss": 0.0727,
    "merged accuracy": 0.9831,
}


def row(states: list[State], method: str) -> dict[str, object]:
    """One line of the table."""
    network = perceptron(WIDTH)
    x, labels = images("mnist", "test")
    outputs = [logits_of(network, state, x) for state in states]
    ends = [scores(logits, labels) for logits in outputs]
    spec = infer_spec(network, torch.zeros(2, 784))
    found = match_many(spec, states, method=method, seed=0)
    pairs = zip(found.transforms, states, strict=True)
    aligned = [transform.apply(state) for transform, state in pairs]
    merged = scores(logits_of(network, average(aligned), x), labels)
    naive = scores(logits_of(network, average(states), x), labels)
    mean = torch.stack(outputs).mean(0)
    ensemble = scores(mean, labels)
    losses = [end["loss"] for end in ends]
    accuracies = [end["accuracy"] for end in ends]
    return {
        "networks": len(states),
        "method": method,
        "best end loss": min(losses),
        "worst end loss": max(losses),
        "naive loss": naive["loss"],
        "merged loss": merged["loss"],
        "ensemble loss": ensemble["loss"],
        "best end accuracy": max(accuracies),
        "worst end accuracy": min(accuracies),
        "naive accuracy": naive["accuracy"],
        "merged accuracy": merged["accuracy"],
        "ensemble accuracy": ensemble["accuracy"],
    }


def main() -> None:
    """Train, merge, write."""
    options = arguments(__doc__)
    count, epochs = (60000, 100) if options.full else (20000, 20)
    train = images("mnist", "train", count)
    states = []
    for seed in range(10):
        name = f"mnist-{WIDTH}-{count}-{epochs}"
        make = partial(perceptron, WIDTH)
        state = trained(
            name, make, train, seed=seed, epochs=epochs, batch=BATCH
        )
        states.append(state)
    rows = []
    for networks in (2, 5, 10):
        for method in METHODS:
            rows.append(row(states[:networks], method))
    recipe = f"784-512-512-512-10, {count} images, {epochs} epochs, Adam 1e-3, batch {BATCH}, pixels / 255"
    write(
        RESULTS / "merge_many",
        rows,
        recipe=recipe,
        seeds=list(range(10)),
        published=PUBLISHED,
    )


if __name__ == "__main__":
    main()
