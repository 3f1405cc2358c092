"""The page of a training holds what its CSV file holds."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from lightning_rebasin.callbacks.live_page import write_live_page
from lightning_rebasin.callbacks.record import Measurement, append_csv
from lightning_rebasin.landscape.barrier import BarrierCurve

LAMBDAS = (0.0, 0.5, 1.0)


def measurement(step: int, top: float) -> Measurement:
    naive = BarrierCurve(LAMBDAS, {"loss": (0.1, top, 0.3), "odd": (1, 0, 1)})
    matched = BarrierCurve(LAMBDAS, {"loss": (0.1, 0.2, 0.3)})
    return Measurement(
        step, step // 10, {"naive": naive, "matched": matched}, {}
    )


def test_every_measurement_is_a_frame(tmp_path: Path) -> None:
    table = tmp_path / "barrier.csv"
    for step in (5, 15):
        append_csv(table, measurement(step, top=step))
    page = write_live_page(table, "barrier", {"odd": True})
    assert page == tmp_path / "barrier.html"
    found = re.search(
        r'type="application/json">(.*?)</script>', page.read_text(), re.DOTALL
    )
    assert found is not None
    first, second = json.loads(found[1])["frames"]
    assert first["label"] == "step 5, epoch 0"
    assert second["label"] == "step 15, epoch 1"
    naive = second["curves"]["naive"]
    assert naive["values"]["loss"] == [0.1, 15, 0.3]
    assert naive["heights"]["loss"] == {
        "height": pytest.approx(14.8),
        "at": 0.5,
    }
    # Its name says nothing, but whoever measured it knew that larger is better.
    assert naive["heights"]["odd"] == {"height": 1, "at": 0.5}
    assert set(first["curves"]) == {"naive", "matched"}
