"""Git Re-Basin's three matchings side by side: weights, activations, straight-through estimator.

    python examples/studies/matchings.py

MNIST perceptrons 784-512-512-512-10 from two seeds, those of ``merge_many.py``.  Every line has 25 λ on training and
test images; published: all three have a barrier of zero, and the test loss is convex for weights and straight-through.
Also networks of width 32, where the methods differ.  Writes table.csv, numbers.json and two pictures to
examples/results/studies/matchings.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import torch
from common import (
    RESULTS,
    Classifier,
    State,
    arguments,
    images,
    loader,
    perceptron,
    trained,
    write,
)
from lightning.pytorch import Trainer

from lightning_rebasin import (
    MergeModule,
    Permutation,
    infer_spec,
    match_activations,
    match_weights,
    measure_barrier,
)
from lightning_rebasin.landscape import BarrierCurve
from lightning_rebasin.plotting import plot_barriers

#: Learning rate and epochs of the straight-through estimator; the published 0.01 needs 250 epochs.
STE_RATE, STE_EPOCHS, STE_BATCH = 10.0, 5, 1000
POINTS, BATCH = 25, 500
#: Training images that a line is measured on, and that choose the learned permutation.
MEASURED, HELD = 10000, 2000
WIDTHS = (512, 32)
FOLDER = RESULTS / "matchings"


def module_of(width: int, state: State | None = None) -> Classifier:
    """The perceptron as a LightningModule, with weights."""
    module = Classifier(perceptron(width))
    module.example_input_array = torch.zeros(2, 784)
    if state is not None:
        module.load_state_dict(state)
    return module


def straight_through(
    ends: list[State], width: int, start: Permutation, train: Any, held: Any
) -> Permutation:
    """The permutation that Git Re-Basin's algorithm 2 learns, from the one of weight matching."""
    torch.manual_seed(0)
    learner = MergeModule(
        module_of(width),
        *ends,
        init=start,
        optimizer=partial(torch.optim.SGD, lr=STE_RATE, momentum=0.9),
    )
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_epochs=STE_EPOCHS,
    )
    batches = loader(*train, STE_BATCH, shuffle=True)
    trainer.fit(learner, batches, loader(*held, 2000))
    return learner.permutation


def permutations(
    ends: list[State], width: int, train: Any, held: Any
) -> dict[str, tuple[Permutation, float]]:
    """Each matching's permutation, and the CPU seconds it took."""
    spec = infer_spec(module_of(width))
    a, b = (module_of(width, end) for end in ends)
    batches = train[0][:10000].split(1000)

    def weights() -> Permutation:
        return match_weights(spec, *ends).permutation

    def activations() -> Permutation:
        return match_activations(spec, a, b, batches).permutation

    def learned() -> Permutation:
        return straight_through(ends, width, weights(), train, held)

    found = {}
    ways = {
        "weights": weights,
        "activations": activations,
        "straight-through": learned,
    }
    for label, way in ways.items():
        begin = time.process_time()
        permutation = way()
        found[label] = permutation, time.process_time() - begin
    return found


def line(
    ends: list[State], width: int, permutation: Permutation | None, data: Any
) -> BarrierCurve:
    """Loss and accuracy on the line to the matched end."""
    first, second = ends
    if permutation is not None:
        second = permutation.apply(second)
    batches = loader(*data, 2000)
    return measure_barrier(
        module_of(width), first, second, batches, points=POINTS
    )


def row(
    width: int,
    label: str,
    seconds: float,
    on_train: BarrierCurve,
    on_test: BarrierCurve,
) -> dict[str, Any]:
    """One line of the table."""
    accuracy = on_test.values["accuracy"]
    return {
        "width": width,
        "matching": label,
        "train loss barrier": on_train.height("loss"),
        "test loss barrier": on_test.height("loss"),
        "test accuracy of the midpoint": on_test.midpoint("accuracy"),
        "test accuracy of the ends": f"{accuracy[0]:.4f}, {accuracy[-1]:.4f}",
        "cpu seconds": round(seconds, 1),
    }


def one_width(
    width: int, count: int, epochs: int
) -> tuple[list[dict[str, Any]], dict[str, BarrierCurve]]:
    """The rows of one width, and its lines on test images."""
    train = images("mnist", "train", count)
    held = train[0][-HELD:], train[1][-HELD:]
    measured = train[0][:MEASURED], train[1][:MEASURED]
    ends = []
    for seed in (0, 1):
        state = trained(
            f"mnist-{width}-{count}-{epochs}",
            partial(perceptron, width),
            train,
            seed=seed,
            epochs=epochs,
            batch=BATCH,
        )
        # The LightningModule around the network names its weights so.
        ends.append({f"network.{key}": value for key, value in state.items()})
    ways: dict[str, tuple[Permutation | None, float]] = {"naive": (None, 0.0)}
    ways.update(permutations(ends, width, train, held))
    rows, curves = [], {}
    for label, (permutation, seconds) in ways.items():
        on_train = line(ends, width, permutation, measured)
        on_test = line(ends, width, permutation, images("mnist", "test"))
        rows.append(row(width, label, seconds, on_train, on_test))
        curves[label] = on_test
    return rows, curves


def main() -> None:
    """Train, match, measure, write."""
    options = arguments(__doc__)
    count, epochs = (60000, 100) if options.full else (20000, 20)
    FOLDER.mkdir(parents=True, exist_ok=True)
    rows = []
    for width in WIDTHS:
        found, curves = one_width(width, count, epochs)
        rows += found
        plot_barriers(
            curves,
            path=FOLDER / f"width-{width}.png",
            title=f"MNIST perceptrons of width {width}, three matchings",
        )
    recipe = f"784-w-w-w-10, {count} images, {epochs} epochs, Adam 1e-3, batch {BATCH}, pixels / 255"
    learning = f"SGD {STE_RATE}, momentum 0.9, {STE_EPOCHS} epochs from weight matching, {HELD} images choose"
    write(
        FOLDER,
        rows,
        recipe=recipe,
        straight_through=learning,
        seeds=[0, 1],
        published="barrier 0 with all three; test loss convex with weights and straight-through",
    )


if __name__ == "__main__":
    main()
