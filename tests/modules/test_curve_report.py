"""The report of a curve: every path at the same t, files, and what is printed."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from lightning_rebasin.landscape import PathCurve
from lightning_rebasin.landscape.paths import Polygon
from lightning_rebasin.modules import CurveReport
from lightning_rebasin.modules.curve_report import measure_curve
from lightning_rebasin.modules.inner import InnerModel


def state(value: float) -> dict[str, torch.Tensor]:
    return {"weight": torch.tensor([[value]])}


def measured() -> CurveReport:
    """``|w|`` along 0 → 4, and along 0 → 6 → 4 with its corner at one half."""
    inner = InnerModel(
        nn.Linear(1, 1, bias=False), lambda net, x: net(x).abs().mean()
    )
    routes = {
        "naive": [state(0.0), state(4.0)],
        "curve": Polygon((state(0.0), state(6.0), state(4.0))),
    }
    return measure_curve(
        inner,
        routes,
        [torch.ones(2, 1)],
        points=[0.25],
        loss=None,
        batch_norm=None,
    )


def test_paths_share_their_t() -> None:
    report = measured()
    assert list(report.curves) == ["naive", "curve"]
    for found in report.curves.values():
        assert found.lambdas == (0.0, 0.25, 0.5, 1.0)
    assert report.curves["naive"].values["loss"] == (0.0, 1.0, 2.0, 4.0)
    assert report.curves["curve"].values["loss"] == (0.0, 3.0, 6.0, 4.0)
    assert report.curves["curve"].normalised_length == pytest.approx(2.0)
    row = str(report).splitlines()[2].split()
    # lowest, highest, mean, barrier, length
    assert row == ["curve", "0", "6", "4", "4", "2"]


def test_files(tmp_path: Path) -> None:
    report = measured()
    report.to_json(tmp_path / "x.json")
    found = json.loads((tmp_path / "x.json").read_text())["curves"]
    assert PathCurve.from_dict(found["curve"]) == report.curves["curve"]
    report.to_csv(tmp_path / "x.csv")
    with (tmp_path / "x.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8
    assert rows[6]["path"] == "curve"
    assert float(rows[6]["length"]) == 6.0


def test_the_page_has_every_path(tmp_path: Path) -> None:
    measured().to_page(tmp_path / "x.html")
    page = (tmp_path / "x.html").read_text()
    assert '"naive":{"lambdas":[0.0,0.25,0.5,1.0]' in page
    assert '"curve":{"lambdas"' in page


def test_the_picture_has_every_path() -> None:
    pytest.importorskip("matplotlib")
    axes = measured().plot().axes[0]
    assert [list(line.get_ydata()) for line in axes.lines][1] == [0, 3, 6, 4]
