"""Every way to match one pair of networks, side by side: barriers, midpoints, a table and a picture."""

import json
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from data import TensorData
from lightning.pytorch import Trainer
from networks import Classifier
from torch import Tensor

from lightning_rebasin import (
    MergeModule,
    Permutation,
    infer_spec,
    interpolate,
    match_activations,
    match_weights,
    measure_barrier,
)
from lightning_rebasin.plotting import plot_barriers

State = Mapping[str, Tensor]


def compare(
    model: Classifier, a: State, b: State, data: TensorData, *, out: Path, name: str, epochs: int, lr: float
) -> dict[str, Any]:
    """Match ``b`` to ``a`` in every way and measure the loss on the segment, on test and on training data.

    Args:
        model: The network.
        a: Reference weights.
        b: Source weights.
        data: Training data to learn from, held-out data to choose by, test data to report.
        out: Folder for ``NAME.json`` and ``NAME.png``.
        name: What to call the pair.
        epochs: Epochs of the straight-through estimator.
        lr: Its learning rate.

    Returns:
        For each method its barriers and midpoints.
    """
    data.setup("fit")
    model.load_state_dict(a)
    source = type(model)()
    source.load_state_dict(b)
    spec = infer_spec(model)
    batches = [x for x, _ in data.train_dataloader_in_order(20)]
    found: dict[str, Permutation] = {"naive": Permutation.identity(spec)}
    seconds = {"naive": 0.0}

    def timed(method: str, run: Callable[[], Permutation]) -> None:
        begin = time.perf_counter()
        found[method] = run()
        seconds[method] = time.perf_counter() - begin

    timed("activations", lambda: match_activations(spec, model, source, batches).permutation)
    timed("weights", lambda: match_weights(spec, a, b).permutation)
    timed("weights from activations", lambda: match_weights(spec, a, b, init=found["activations"]).permutation)
    for start in ("weights", "activations"):
        learn = partial(learned, model, a, b, data, init=found[start], epochs=epochs, lr=lr)
        timed(f"straight-through from {start}", learn)
    curves, rows = {}, {}
    for method, permutation in found.items():
        aligned = permutation.apply(b)
        test = measure_barrier(model, a, aligned, data.test_dataloader())
        train = measure_barrier(model, a, aligned, data.train_dataloader_in_order(10))
        held_out = measure_barrier(model, interpolate(a, aligned, 0.5), a, data.val_dataloader(), points=2)
        curves[method] = test
        rows[method] = {
            "test barrier": test.height("val_loss"),
            "test midpoint loss": test.midpoint("val_loss"),
            "test midpoint accuracy": test.midpoint("val_accuracy"),
            "train barrier": train.height("val_loss"),
            "held-out midpoint loss": held_out.values["val_loss"][0],
            "test curve convex": _is_convex(test.values["val_loss"]),
            "seconds": seconds[method],
        }
    ends = {key: [values[0], values[-1]] for key, values in curves["naive"].values.items()}
    result = {"ends on test": ends, "methods": rows, "test loss": {m: c.values["val_loss"] for m, c in curves.items()}}
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    plot_barriers(curves, path=out / f"{name}.png", title=f"{name}, test data")
    _show(ends, rows)
    return result


def learned(
    model: Classifier, a: State, b: State, data: TensorData, *, init: Permutation, epochs: int, lr: float
) -> Permutation:
    """The permutation that a MergeModule finds, chosen on held-out data."""
    module = MergeModule(model, a, b, init=init, optimizer=partial(torch.optim.SGD, lr=lr, momentum=0.9))
    trainer = Trainer(
        max_epochs=epochs,
        val_check_interval=0.1,
        accelerator="auto",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data)
    return module.permutation


def _is_convex(values: tuple[float, ...]) -> bool:
    """Whether all second differences are non-negative, up to a thousandth of the range."""
    slack = 1e-3 * (max(values) - min(values))
    return all(values[i - 1] + values[i + 1] - 2 * values[i] >= -slack for i in range(1, len(values) - 1))


def _show(ends: Mapping[str, Any], rows: Mapping[str, Mapping[str, Any]]) -> None:
    print("ends on test data:", {key: [round(value, 4) for value in pair] for key, pair in ends.items()})
    columns = list(next(iter(rows.values())))
    print(f"{'':<34}" + "".join(f"{column:>24}" for column in columns))
    for method, row in rows.items():
        cells = [
            f"{row[column]!s:>24}" if isinstance(row[column], bool) else f"{row[column]:>24.4f}" for column in columns
        ]
        print(f"{method:<34}" + "".join(cells))
