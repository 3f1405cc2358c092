"""barrier_matrix against measure_barrier, pair by pair."""

from __future__ import annotations

import json
import math

import pytest
import torch
from helpers.classifier import Classifier, train_loader, val_loader
from helpers.trainers import trainer_in
from lightning.pytorch import seed_everything

from lightning_rebasin import (
    CheckpointSnapshot,
    infer_spec,
    match_weights,
    measure_barrier,
)
from lightning_rebasin.errors import (
    CheckpointError,
    ConfigurationError,
    DataError,
)
from lightning_rebasin.landscape import barrier_matrix, load_trajectory


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs with snapshots, one of them in half precision and at other steps."""
    folder = tmp_path_factory.mktemp("runs")
    modules = []
    for name, options in (
        ("a", {"every_n_epochs": 1}),
        ("b", {"at_steps": [0, 3, 8], "precision": "float16"}),
    ):
        seed_everything(len(name) + ord(name), verbose=False)
        module = Classifier()
        trainer_in(
            folder / f"{name}-logs",
            callbacks=[CheckpointSnapshot(folder / name, **options)],
        ).fit(module, train_loader(), val_loader())
        modules.append(module)
    return folder / "a", folder / "b", modules[0]


def test_every_entry_is_the_barrier_of_its_pair(runs, tmp_path):
    a, b, module = runs
    matrix = barrier_matrix(module, a, b, val_loader(), points=3)
    assert (matrix.steps_a, matrix.steps_b, matrix.metric) == (
        (0, 4, 8),
        (0, 3, 8),
        "val_loss",
    )
    for i, one in enumerate(load_trajectory(a)):
        for j, other in enumerate(load_trajectory(b)):
            full = {k: v.float() for k, v in other.state_dict().items()}
            curve = measure_barrier(
                module, one.state_dict(), full, val_loader(), points=3
            )
            assert matrix.heights[i][j] == pytest.approx(
                curve.height("val_loss"), rel=1e-9
            )
    matrix.to_csv(tmp_path / "m.csv")
    assert (tmp_path / "m.csv").read_text().splitlines()[0] == "step,0,3,8"
    matrix.to_json(tmp_path / "m.json")
    assert json.loads((tmp_path / "m.json").read_text())["steps_b"] == [
        0,
        3,
        8,
    ]


def test_a_run_has_no_barrier_with_itself_on_the_diagonal(runs):
    a, _, module = runs
    matrix = barrier_matrix(
        module, a, a, val_loader(), points=3, same_step=True
    )
    for i, row in enumerate(matrix.heights):
        assert row[i] == 0
        assert all(math.isnan(value) for j, value in enumerate(row) if j != i)


def test_with_a_spec_the_columns_are_re_matched(runs):
    a, b, module = runs
    spec = infer_spec(module)
    matrix = barrier_matrix(
        module, a, b, val_loader(), points=3, spec=spec, same_step=True
    )
    one = next(s for s in load_trajectory(a) if s.step == 0).state_dict()
    other = {
        k: v.float()
        for k, v in next(s for s in load_trajectory(b) if s.step == 0)
        .state_dict()
        .items()
    }
    matched = match_weights(spec, one, other).permutation.apply(other)
    expected = measure_barrier(
        module, one, matched, val_loader(), points=3
    ).height("val_loss")
    assert matrix.heights[0][0] == pytest.approx(expected, rel=1e-6)


def test_bad_input_is_named(runs, tmp_path):
    a, b, module = runs
    with pytest.raises(CheckpointError, match=r"index\.json"):
        barrier_matrix(module, tmp_path, b, val_loader())
    with pytest.raises(DataError, match="no snapshots"):
        barrier_matrix(module, [], b, val_loader())
    with pytest.raises(DataError, match="equal step"):
        barrier_matrix(
            module,
            list(load_trajectory(a))[1:2],
            list(load_trajectory(b))[1:2],
            val_loader(),
            same_step=True,
        )
    with pytest.raises(ConfigurationError, match="'nothing'"):
        barrier_matrix(module, a, b, val_loader(), points=2, metric="nothing")
    assert not any(torch.is_inference(p) for p in module.parameters())
