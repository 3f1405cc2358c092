"""The report of a star: the worst of every metric, files, and what is printed."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest

from lightning_rebasin.errors import DataError
from lightning_rebasin.landscape import BarrierCurve
from lightning_rebasin.modules import StarReport


def curve(loss: float, acc: float) -> BarrierCurve:
    values = {"loss": (1.0, loss, 1.0), "acc": (0.9, acc, 0.7)}
    return BarrierCurve((0.0, 0.5, 1.0), values)


REPORT = StarReport(
    (curve(2, 0.8), curve(4, 0.6), curve(1, 0.9)),
    {
        (0, 1): curve(9, 0.1),
        (0, 2): curve(8, 0.2),
        (1, 2): curve(7, 0.3),
    },
    {(0, 1): 1.5, (0, 2): 1.25, (1, 2): math.nan},
)


def test_the_worst_is_on_either_ray() -> None:
    assert REPORT.worst(0, 1) == (9, 4)
    assert REPORT.worst(0, 2) == (8, 2)
    assert REPORT.worst(0, 1, "acc") == (0.1, 0.6)
    assert REPORT.center_barriers == (1, 3, 0)
    assert REPORT.pair_barriers == {(0, 1): 8, (0, 2): 7, (1, 2): 6}
    with pytest.raises(DataError, match="'f1' was not measured"):
        REPORT.worst(0, 1, "f1")


def test_files_hold_every_line(tmp_path: Path) -> None:
    REPORT.to_json(tmp_path / "x.json")
    found = json.loads((tmp_path / "x.json").read_text())
    assert [pair["ends"] for pair in found["pairs"]] == [
        [0, 1],
        [0, 2],
        [1, 2],
    ]
    assert [pair["length"] for pair in found["pairs"]] == [1.5, 1.25, None]
    ray = BarrierCurve.from_dict(found["rays"][1])
    assert ray == REPORT.rays[1]
    REPORT.to_csv(tmp_path / "x.csv")
    with (tmp_path / "x.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6 * 3
    # The centre is 0, ends count from 1.
    middle = next(
        r
        for r in rows
        if (r["from"], r["to"], r["lambda"]) == ("0", "2", "0.5")
    )
    assert (float(middle["loss"]), float(middle["acc"])) == (4, 0.6)


def test_the_picture_shows_the_metric_that_is_wanted() -> None:
    pytest.importorskip("matplotlib")
    left, right = REPORT.plot(metric="acc").axes
    assert list(left.lines[1].get_ydata()) == [0.9, 0.6, 0.7]
    assert list(right.lines[0].get_ydata()) == [0.9, 0.1, 0.7]


def test_the_page_holds_rays_and_lines(tmp_path: Path) -> None:
    REPORT.to_page(tmp_path / "x.html")
    page = (tmp_path / "x.html").read_text()
    for k in range(len(REPORT.rays)):
        assert f'"center \\u2013 {k}"' in page
    for i, j in REPORT.pairs:
        assert f'"{i} \\u2013 {j}"' in page
