"""Features as values: geometry by hand, columns, files."""

from __future__ import annotations

import json
import math

import pytest
import torch

from lightning_rebasin.errors import DataError
from lightning_rebasin.landscape.features import (
    WHOLE,
    FeatureHistory,
    FeatureRow,
    Features,
    Places,
    geometry,
)


def at(*values):
    return {"w": torch.tensor(values)}


def test_geometry_by_hand():
    places = Places(
        current=at(3.0, 4.0),
        reference=at(3.0, -4.0),
        start=at(3.0, 0.0),
        reference_start=at(0.0, -4.0),
        fork=at(0.0, 4.0),
    )
    found = geometry(places, ["w"])
    assert found.distance == 8.0
    assert found.cosine == pytest.approx((9 - 16) / 25)
    assert found.moved == 4.0
    assert found.moved_cosine == pytest.approx(0.6)
    assert found.reference_moved == 3.0
    assert found.reference_moved_cosine == pytest.approx(0.8)
    # (3, 0) and (3, −8) from the fork.
    assert found.angle == pytest.approx(math.degrees(math.atan2(8, 3)))
    assert math.isnan(found.gradient_norm)


def test_parallel_and_opposite_ways_have_angles_in_spite_of_rounding():
    start = at(0.1, 0.2)
    ahead = at(0.1 + 0.3, 0.2 + 0.7)
    further = at(0.1 + 0.6, 0.2 + 1.4)
    behind = at(0.1 - 0.3, 0.2 - 0.7)
    same = geometry(Places(ahead, further, start), ["w"])
    assert same.angle == pytest.approx(0, abs=0.1)
    assert math.isnan(same.reference_moved)
    opposite = geometry(Places(ahead, behind, start), ["w"])
    assert opposite.angle == pytest.approx(180, abs=0.1)
    assert math.isnan(geometry(Places(start, ahead, start), ["w"]).angle)


def history():
    rows = []
    for step in (4, 8):
        parts = {
            WHOLE: Features(step, 0.5, 1.0, 0.9, curvature=-2.0),
            "fc": Features(step / 2, 0.1, 0.2, 0.3),
        }
        rows.append(FeatureRow(step, step // 4 - 1, 0.25, parts))
    return FeatureHistory(tuple(rows))


def test_columns():
    found = history()
    assert found.layers == ("fc",)
    assert found.column("distance") == (4, 8)
    assert found.column("distance", "fc") == (2, 4)
    assert found.rows[0].whole.curvature == -2.0
    for name, layer in (("f1", WHOLE), ("distance", "conv")):
        with pytest.raises(DataError, match="no feature"):
            found.column(name, layer)


def test_files(tmp_path):
    found = history()
    found.to_csv(tmp_path / "f.csv")
    lines = (tmp_path / "f.csv").read_text().splitlines()
    assert lines[0].startswith("step,epoch,loss,layer,distance,cosine,moved")
    assert lines[2].startswith("4,0,0.25,fc,2.0,0.1,0.2,0.3,nan")
    assert len(lines) == 5
    found.to_json(tmp_path / "f.json")
    again = FeatureHistory.from_json(tmp_path / "f.json")
    assert again.column("moved_cosine", "fc") == (0.3, 0.3)
    assert repr(again) == repr(found)
    (tmp_path / "f.json").write_text(
        json.dumps({**found.to_dict(), "rows": 3})
    )
    with pytest.raises(DataError, match="malformed features"):
        FeatureHistory.from_json(tmp_path / "f.json")
