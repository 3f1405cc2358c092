"""Geodesics as values: files and pictures."""

from __future__ import annotations

import json

import pytest
import torch

from lightning_rebasin.errors import DataError
from lightning_rebasin.landscape import Geodesic, GeodesicLength
from lightning_rebasin.landscape.paths import Polygon

LENGTH = GeodesicLength((0.0, 0.5, 1.0), (0.02, 0.005), 0.02, 7)
CHAIN = Geodesic(
    Polygon(tuple({"w": torch.tensor([x])} for x in (0.0, 1.0, 3.0))),
    (0.5, 0.25, 0.125),
)


def test_files_of_a_length_are_read_back(tmp_path):
    LENGTH.to_csv(tmp_path / "g.csv")
    assert (tmp_path / "g.csv").read_text() == (
        "from,to,js\n0.0,0.5,0.02\n0.5,1.0,0.005\n"
    )
    LENGTH.to_json(tmp_path / "g.json")
    assert GeodesicLength.from_json(tmp_path / "g.json") == LENGTH
    data = json.loads((tmp_path / "g.json").read_text())
    assert data["normalised_length"] == pytest.approx(1.5)
    del data["ends"]
    (tmp_path / "g.json").write_text(json.dumps(data))
    with pytest.raises(DataError, match="malformed geodesic length"):
        GeodesicLength.from_json(tmp_path / "g.json")


def test_files_of_a_chain(tmp_path):
    CHAIN.to_csv(tmp_path / "c.csv")
    text = (tmp_path / "c.csv").read_text()
    assert text == "step,energy\n0,0.5\n1,0.25\n2,0.125\n"
    CHAIN.to_json(tmp_path / "c.json")
    data = json.loads((tmp_path / "c.json").read_text())
    assert (data["networks"], data["energies"]) == (3, [0.5, 0.25, 0.125])
    assert (
        repr(CHAIN) == "Geodesic(3 networks, energy 0.5 to 0.125 in 3 steps)"
    )
