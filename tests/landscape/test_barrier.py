"""BarrierCurve: heights against the definitions, the grid, files."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_rebasin.errors import ConfigurationError, DataError, OutputError
from lightning_rebasin.landscape.barrier import (
    BarrierCurve,
    is_higher_better,
    lambda_grid,
)

CURVE = BarrierCurve(
    (0.0, 0.25, 0.5, 0.75, 1.0),
    {
        "val_loss": (0.2, 0.5, 0.9, 1.0, 0.6),
        "val_acc": (0.9, 0.8, 0.3, 0.2, 0.7),
    },
    samples=40,
)


def test_heights_of_a_hand_computed_curve():
    assert CURVE.height("val_loss") == pytest.approx(1.0 - 0.4)
    assert CURVE.height("val_loss", "chord") == pytest.approx(
        0.9 - 0.4
    )  # at ½: 0.9 − 0.4; at ¾: 1.0 − 0.5
    assert CURVE.at("val_loss") == 0.75
    assert CURVE.at("val_loss", "chord") in (0.5, 0.75)
    assert CURVE.height("val_acc") == pytest.approx(0.8 - 0.2)
    assert CURVE.midpoint("val_acc") == 0.3


@given(
    st.lists(st.floats(-50, 50), min_size=3, max_size=9),
    st.sampled_from(["loss", "accuracy"]),
)
def test_heights_are_the_definitions(row, name):
    lambdas = tuple(i / (len(row) - 1) for i in range(len(row)))
    curve = BarrierCurve(lambdas, {name: tuple(row)})
    worse = [-v for v in row] if name == "accuracy" else row
    mean = max(worse) - (worse[0] + worse[-1]) / 2
    chord = max(
        w - ((1 - x) * worse[0] + x * worse[-1])
        for w, x in zip(worse, lambdas, strict=True)
    )
    assert curve.height(name) == pytest.approx(mean, abs=1e-9)
    assert curve.height(name, "chord") == pytest.approx(chord, abs=1e-9)
    assert curve.height(name) >= abs(row[0] - row[-1]) / 2 - 1e-9
    assert curve.height(name, "chord") >= 0


def test_a_straight_line_has_no_chord_barrier_at_all():
    curve = BarrierCurve((0.0, 0.5, 1.0), {"loss": (0.1, 0.2, 0.3)})
    assert curve.height("loss", "chord") == pytest.approx(0, abs=1e-16)


def test_nan_in_the_middle_is_not_hidden():
    curve = BarrierCurve((0.0, 0.5, 1.0), {"loss": (0.1, math.nan, 0.3)})
    assert math.isnan(curve.height("loss"))
    assert curve.at("loss") == 0.5


def test_declared_direction_overrules_the_name():
    curve = BarrierCurve(
        (0.0, 0.5, 1.0),
        {"perplexity_acc": (1.0, 3.0, 1.0)},
        {"perplexity_acc": False},
    )
    assert curve.height("perplexity_acc") == 2.0


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("val_acc", True),
        ("val/Accuracy@1", True),
        ("MulticlassF1Score", True),
        ("val_auroc/dataloader_idx_1", True),
        ("val_loss", False),
        ("accumulated_error", False),
        ("topology", False),
    ],
)
def test_direction_by_name(name, expected):
    assert is_higher_better(name) is expected


@pytest.mark.parametrize("points", [2, 3, 4, 10, 25])
def test_grid_has_ends_and_midpoint(points):
    grid = lambda_grid(points)
    assert {0.0, 0.5, 1.0} <= set(grid)
    assert len(grid) == points + (points % 2 == 0)
    assert list(grid) == sorted(set(grid))


def test_grid_of_given_points():
    assert lambda_grid([0.9, 0.1]) == (0.0, 0.1, 0.5, 0.9, 1.0)


@pytest.mark.parametrize("points", [0, 1, True, [1.5], [-0.1], [math.nan]])
def test_grid_refuses(points):
    with pytest.raises(ConfigurationError, match="point"):
        lambda_grid(points)


@pytest.mark.parametrize(
    ("lambdas", "values"),
    [
        ((0.0, 0.5), {}),
        ((0.0,), {}),
        ((0.0, 0.7, 0.5, 1.0), {}),
        ((0.0, 1.0), {"loss": (1.0,)}),
    ],
)
def test_malformed_curves_are_refused(lambdas, values):
    with pytest.raises(DataError):
        BarrierCurve(lambdas, values)


def test_unknown_names_are_refused():
    with pytest.raises(DataError, match=r"'los'.*'val_loss'"):
        CURVE.height("los")
    with pytest.raises(ConfigurationError, match="'mean' or 'chord'"):
        CURVE.height("val_loss", "max")
    with pytest.raises(DataError, match=r"0\.5"):
        BarrierCurve((0.0, 1.0), {"loss": (0.0, 1.0)}).midpoint("loss")


def test_values_cannot_be_changed():
    with pytest.raises(TypeError):
        CURVE.values["val_loss"] = (0.0,)


def test_json_round_trip(tmp_path):
    CURVE.to_json(tmp_path / "curve.json")
    assert BarrierCurve.from_json(tmp_path / "curve.json") == CURVE
    assert BarrierCurve.from_json(tmp_path / "curve.json").samples == 40


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"format": "other"}',
        '{"format": "lightning-rebasin-barrier"}',
    ],
)
def test_foreign_json_is_refused(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(DataError):
        BarrierCurve.from_json(tmp_path / "x.json")


def test_csv(tmp_path):
    CURVE.to_csv(tmp_path / "curve.csv")
    lines = (tmp_path / "curve.csv").read_text().splitlines()
    assert lines[0] == "lambda,val_loss,val_acc"
    assert lines[2] == "0.25,0.5,0.8"
    assert len(lines) == 6


def test_missing_folder_is_refused(tmp_path):
    with pytest.raises(OutputError, match="missing"):
        CURVE.to_csv(tmp_path / "missing" / "curve.csv")
    with pytest.raises(DataError, match=r"nowhere\.json"):
        BarrierCurve.from_json(tmp_path / "nowhere.json")


def test_repr_is_readable():
    assert "val_loss 0.6 at λ=0.75" in repr(CURVE)
    assert json.loads(json.dumps(CURVE.to_dict()))["lambdas"][1] == 0.25
