"""Every way to match one pair of networks, side by side: barriers, midpoints, a table and a picture."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
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

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Learning:
    """Settings of the straight-through estimator.

    Args:
        lr: Learning rate of SGD with momentum 0.9.
        steps: Optimizer steps.
        validate_every: Steps from one scoring of the candidates to the next.
        held_out_batches: Batches of 1000 that candidates are scored on.
    """

    lr: float
    steps: int
    validate_every: int
    held_out_batches: int = 5


def compare(
    model: Classifier,
    a: State,
    b: State,
    data: TensorData,
    *,
    out: Path,
    name: str,
    learning: Learning,
    points: int = 25,
) -> dict[str, Any]:
    """Match ``b`` to ``a`` in every way and measure the loss on the segment, on test and on training data.

    Args:
        model: The network.
        a: Reference weights.
        b: Source weights.
        data: Training data to learn from, held-out data to choose by, test data to report.
        out: Folder for ``NAME.json`` and ``NAME.png``.
        name: What to call the pair.
        learning: Settings of the straight-through estimator.
        points: Number of λ.

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

    timed(
        "activations",
        lambda: match_activations(spec, model, source, batches).permutation,
    )
    timed("weights", lambda: match_weights(spec, a, b).permutation)
    timed(
        "weights from activations",
        lambda: (
            match_weights(spec, a, b, init=found["activations"]).permutation
        ),
    )
    for start in ("weights", "activations"):
        learn = partial(
            learned, model, a, b, data, init=found[start], learning=learning
        )
        timed(f"straight-through from {start}", learn)
    curves, rows, batches = {}, {}, learning.held_out_batches
    for method, permutation in found.items():
        aligned = permutation.apply(b)
        test = measure_barrier(
            model, a, aligned, data.test_dataloader(), points=points
        )
        train = measure_barrier(
            model,
            a,
            aligned,
            data.train_dataloader_in_order(2 * batches),
            points=points,
        )
        middle = interpolate(a, aligned, 0.5)
        held_out = measure_barrier(
            model,
            middle,
            a,
            data.val_dataloader(),
            points=2,
            limit_batches=batches,
        )
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
    ends = {
        key: [values[0], values[-1]]
        for key, values in curves["naive"].values.items()
    }
    result = {
        "ends on test": ends,
        "methods": rows,
        "lambdas": curves["naive"].lambdas,
        "test loss": {
            method: curve.values["val_loss"]
            for method, curve in curves.items()
        },
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    draw(
        result,
        out / f"{name}.png",
        f"{name}: test loss between the two networks",
    )
    _show(ends, rows)
    return result


def learned(
    model: Classifier,
    a: State,
    b: State,
    data: TensorData,
    *,
    init: Permutation,
    learning: Learning,
) -> Permutation:
    """The permutation that a MergeModule finds, chosen on held-out data."""
    module = MergeModule(
        model,
        a,
        b,
        init=init,
        optimizer=partial(torch.optim.SGD, lr=learning.lr, momentum=0.9),
    )
    trainer = Trainer(
        max_steps=learning.steps,
        val_check_interval=learning.validate_every,
        check_val_every_n_epoch=None,
        limit_val_batches=learning.held_out_batches,
        accelerator="auto",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data)
    return module.permutation


def draw(result: Mapping[str, Any], path: Path, title: str) -> None:
    """All curves on the left, all but the naive one on the right; the legend below belongs to both."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5), layout="constrained")
    panels = figure.subplots(1, 2)
    for number, (method, values) in enumerate(result["test loss"].items()):
        label = f"{method} (midpoint {result['methods'][method]['test midpoint loss']:.4f})"
        for panel in panels if method != "naive" else panels[:1]:
            panel.plot(
                result["lambdas"],
                values,
                color=f"C{number}",
                marker="o",
                markersize=3,
                label=label,
            )
    for panel in panels:
        panel.set_xlabel("λ")
        panel.set_ylabel("loss")
        panel.grid(alpha=0.3)
    panels[0].set_title("all")
    panels[1].set_title("without the naive one")
    figure.suptitle(title)
    figure.legend(
        *panels[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=2,
        frameon=False,
    )
    figure.savefig(path, dpi=110)


def _is_convex(values: tuple[float, ...]) -> bool:
    """Whether all second differences are non-negative, up to a thousandth of the range."""
    slack = 1e-3 * (max(values) - min(values))
    return all(
        values[i - 1] + values[i + 1] - 2 * values[i] >= -slack
        for i in range(1, len(values) - 1)
    )


def _show(
    ends: Mapping[str, Any], rows: Mapping[str, Mapping[str, Any]]
) -> None:
    print(
        "ends on test data:",
        {
            key: [round(value, 4) for value in pair]
            for key, pair in ends.items()
        },
    )
    columns = list(next(iter(rows.values())))
    print(f"{'':<34}" + "".join(f"{column:>24}" for column in columns))
    for method, row in rows.items():
        cells = [
            f"{row[column]!s:>24}"
            if isinstance(row[column], bool)
            else f"{row[column]:>24.4f}"
            for column in columns
        ]
        print(f"{method:<34}" + "".join(cells))
