"""Layer-wise barriers as values: heights, files."""

from __future__ import annotations

import math

import pytest

from lightning_rebasin.errors import DataError
from lightning_rebasin.landscape.layer_values import LayerBarriers

VALUES = LayerBarriers(
    ("conv", "fc"),
    (0.0, 0.5, 1.0),
    {
        "loss": {
            "a": ((1.0, 4.0, 2.0), (1.0, 1.5, 1.0)),
            "b": ((2.0, 2.0, 3.0), (0.0, 9.0, 3.0)),
        },
        "acc": {
            "a": ((0.9, 0.2, 0.7), (0.9, 0.9, 0.9)),
            "b": ((0.5, 0.6, 0.7), (0.1, 0.7, 0.7)),
        },
    },
    {"loss": (1.0, 3.0), "acc": (0.9, 0.7)},
    "window",
    {"loss": False, "acc": True},
    12,
)


def test_heights_are_against_the_mean_of_the_full_models():
    assert VALUES.heights() == {"a": (2.0, -0.5), "b": (1.0, 7.0)}
    assert VALUES.heights("acc")["a"] == pytest.approx((0.6, -0.1))
    assert VALUES.heights("acc")["b"] == pytest.approx((0.3, 0.7))
    with pytest.raises(DataError, match="'f1'"):
        VALUES.heights("f1")


@pytest.mark.parametrize("place", range(3))
def test_a_broken_value_is_a_broken_barrier(place):
    row = [5.0, 1.0, 5.0]
    row[place] = math.nan
    broken = LayerBarriers(
        ("fc",),
        (0.0, 0.5, 1.0),
        {"loss": {"a": (tuple(row),)}},
        {"loss": (1.0, 1.0)},
    )
    assert math.isnan(broken.heights()["a"][0])


def test_files_come_back(tmp_path):
    VALUES.to_json(tmp_path / "l.json")
    assert LayerBarriers.from_json(tmp_path / "l.json") == VALUES
    VALUES.to_csv(tmp_path / "l.csv")
    lines = (tmp_path / "l.csv").read_text().splitlines()
    assert lines[0] == "layer,base,lambda,loss,acc"
    assert lines[5] == "conv,b,0.5,2.0,0.6"
    assert len(lines) == 1 + 2 * 2 * 3
    (tmp_path / "l.json").write_text(
        '{"format": "lightning-rebasin-layer-barriers"}'
    )
    with pytest.raises(DataError, match="malformed"):
        LayerBarriers.from_json(tmp_path / "l.json")
    assert "window, 2 sets, 12 samples; highest: loss 7, acc 0.7" in repr(
        VALUES
    )
