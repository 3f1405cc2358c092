"""Planes as values: files."""

from __future__ import annotations

import pytest

from lightning_rebasin.errors import DataError
from lightning_rebasin.landscape.plane_values import LossPlane

PLANE = LossPlane(
    (0.0, 1.0, 2.0),
    (0.0, 5.0),
    {"loss": ((1.0, 2.0, 3.0), (4.0, 5.0, 6.0)), "acc": ((0.1,) * 3,) * 2},
    ((0.0, 0.0), (2.0, 0.0), (1.0, 5.0)),
    {"loss": (1.0, 3.0, 5.0), "acc": (0.1, 0.1, 0.1)},
    ((0.0, 0.0), (1.0, 1.0)),
    0.25,
    {"loss": False, "acc": True},
    9,
)


def test_files_come_back(tmp_path):
    PLANE.to_json(tmp_path / "p.json")
    assert LossPlane.from_json(tmp_path / "p.json") == PLANE
    PLANE.to_csv(tmp_path / "p.csv")
    lines = (tmp_path / "p.csv").read_text().splitlines()
    assert lines[:3] == ["x,y,loss,acc", "0.0,0.0,1.0,0.1", "1.0,0.0,2.0,0.1"]
    assert lines[-1] == "2.0,5.0,6.0,0.1"
    assert len(lines) == 7


def test_foreign_files_are_refused(tmp_path):
    path = tmp_path / "p.json"
    path.write_text('{"format": "lightning-rebasin-loss-plane"}')
    with pytest.raises(DataError, match="malformed plane"):
        LossPlane.from_json(path)


def test_it_says_how_good_it_gets():
    assert repr(PLANE) == (
        "LossPlane(3 × 2 points, 9 samples; best: loss 1, acc 0.1)"
    )
