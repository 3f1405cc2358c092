"""What a measurement says, and the CSV file it is added to."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from lightning_rebasin.callbacks.record import Measurement, append_csv
from lightning_rebasin.errors import BarrierWarning, OutputError
from lightning_rebasin.landscape import BarrierCurve
from lightning_rebasin.landscape.geometry import Separation

NAIVE = BarrierCurve(
    (0.0, 0.5, 1.0), {"acc": (0.9, 0.2, 0.7), "val_loss": (0.1, 0.9, 0.3)}
)
MATCHED = BarrierCurve(
    (0.0, 0.5, 1.0), {"acc": (0.9, 0.8, 0.7), "val_loss": (0.1, 0.2, 0.3)}
)


def measured(step=4, **curves):
    return Measurement(
        step,
        1,
        curves or {"naive": NAIVE, "matched": MATCHED},
        {"naive": Separation(2.0, 0.5), "matched": Separation(1.0, 0.75)},
        moved=0.25,
    )


def test_scalars_are_named_after_curve_and_metric():
    found = measured().scalars("barrier", "mean")
    assert found == {
        "barrier/acc": pytest.approx(0.6),
        "barrier/acc/at": 0.5,
        "barrier/val_loss": pytest.approx(0.7),
        "barrier/val_loss/at": 0.5,
        "barrier/acc/matched": pytest.approx(0.1),
        "barrier/acc/matched/at": 1.0,
        "barrier/val_loss/matched": pytest.approx(0.1),
        "barrier/val_loss/matched/at": 1.0,
        "barrier/distance": 2.0,
        "barrier/cosine": 0.5,
        "barrier/distance/matched": 1.0,
        "barrier/cosine/matched": 0.75,
        "barrier/moved": 0.25,
    }


def test_the_convention_decides_the_height():
    assert measured().scalars("b", "chord")["b/acc/matched"] == 0.0


def test_the_main_metric_is_the_first_loss_or_else_the_first():
    assert measured().main_metric == "val_loss"
    only = BarrierCurve((0.0, 1.0), {"acc": (0.1, 0.2), "f1": (0.1, 0.2)})
    assert measured(naive=only).main_metric == "acc"
    assert measured(naive=BarrierCurve((0.0, 1.0), {})).main_metric == ""


def test_selected_metrics_come_in_the_given_order_and_the_rest_is_named():
    chosen = measured().selected(["val_loss", "acc"])
    assert list(chosen.curves["matched"].values) == ["val_loss", "acc"]
    assert chosen.moved == 0.25
    with pytest.warns(BarrierWarning, match=r"does not log 'f1'; it logs"):
        chosen = measured(naive=NAIVE).selected(["f1", "acc"])
    assert list(chosen.curves["naive"].values) == ["acc"]


def test_rows_keep_every_digit():
    third = BarrierCurve((0.0, 1.0), {"loss": (1 / 3, math.nan)})
    assert measured(naive=third).rows() == [
        ("4", "1", "naive", "0.0", "loss", "0.3333333333333333", ""),
        ("4", "1", "naive", "1.0", "loss", "nan", ""),
    ]


def test_rows_of_the_matched_curve_say_how_it_was_matched():
    found = replace(measured(), matching="correlation").rows()
    assert {row[2]: row[-1] for row in found} == {
        "naive": "",
        "matched": "correlation",
    }


def test_the_winner_is_a_number_and_every_distance_is_logged():
    scores = {"weight": 0.5, "activation": 0.1, "correlation": 0.2}
    found = replace(measured(), matching="activation", scores=scores)
    names = {
        name: value
        for name, value in found.scalars("b", "mean").items()
        if name.startswith("b/matching")
    }
    assert names == {
        "b/matching": 1,
        "b/matching/weight": 0.5,
        "b/matching/activation": 0.1,
        "b/matching/correlation": 0.2,
    }
    alone = replace(measured(), matching="activation")
    assert (
        alone.scalars("b", "mean").keys()
        == measured().scalars("b", "mean").keys()
    )


def test_rows_of_the_same_or_a_later_step_are_replaced(tmp_path):
    path = tmp_path / "logs" / "barrier.csv"
    for step in (2, 4, 6, 4):
        append_csv(path, measured(step, naive=NAIVE))
    header, *rows = path.read_text().splitlines()
    assert header == "step,epoch,curve,lambda,metric,value,matching"
    assert [row.split(",")[0] for row in rows] == ["2"] * 6 + ["4"] * 6


def test_a_file_of_an_older_version_is_continued(tmp_path):
    path = tmp_path / "barrier.csv"
    path.write_text(
        "step,epoch,curve,lambda,metric,value\n2,0,naive,0.0,loss,1.5\n"
    )
    append_csv(path, measured(4, naive=NAIVE))
    header, first, *rows = path.read_text().splitlines()
    assert header.endswith(",value,matching")
    assert first == "2,0,naive,0.0,loss,1.5,"
    assert len(rows) == 6


def test_a_foreign_file_is_not_overwritten(tmp_path):
    path = tmp_path / "barrier.csv"
    path.write_text("mine\n")
    with pytest.raises(OutputError, match="not written by LossBarrier"):
        append_csv(path, measured())
    assert path.read_text() == "mine\n"
