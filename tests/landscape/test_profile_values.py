"""Bumps by hand, files."""

from __future__ import annotations

import math

import pytest

from lightning_rebasin.errors import DataError
from lightning_rebasin.landscape.profile_values import Bump, LossProfile


def profile(row, name="loss", **options):
    alphas = tuple(float(k) for k in range(len(row)))
    return LossProfile(alphas, {name: tuple(map(float, row))}, **options)


@pytest.mark.parametrize(
    ("row", "bumps", "total"),
    [
        ((3, 2, 1), (), 0),
        ((1, 1, 1), (), 0),
        ((1, 2, 3), ((0, 2, 2),), 2),
        ((3, 1, 1, 2, 2, 0), ((2, 4, 1),), 1),
        ((2, 3, 1, 2), ((0, 1, 1), (2, 3, 1)), 1),
        # Two rises with a dip between: together worse than each.
        ((0, 4, 3, 5), ((0, 1, 4), (2, 3, 2)), 5),
    ],
)
def test_bumps(row, bumps, total):
    found = profile(row)
    assert found.bumps("loss") == tuple(Bump(*map(float, b)) for b in bumps)
    assert found.bump("loss") == total
    assert found.is_monotone("loss") == (total == 0)
    assert found.is_monotone("loss", tolerance=total)


def test_where_larger_is_better_a_fall_is_a_bump():
    found = profile((0.1, 0.5, 0.4, 0.9), "val_acc")
    assert found.bump("val_acc") == pytest.approx(0.1)
    assert found.bumps("val_acc")[0][:2] == (1.0, 2.0)
    assert (
        profile((1, 0), "val_acc", higher_is_better={"val_acc": False}).bump(
            "val_acc"
        )
        == 0
    )


def test_a_broken_value_never_looks_monotone():
    assert math.isnan(profile((1, math.nan, 0)).bump("loss"))
    assert not profile((1, math.nan, 0)).is_monotone("loss")


def test_files_come_back(tmp_path):
    one = LossProfile(
        (-1.0, 0.5), {"loss": (1.0, 2.0), "acc": (0.5, 0.25)}, samples=3
    )
    one.to_json(tmp_path / "p.json")
    assert LossProfile.from_json(tmp_path / "p.json") == one
    one.to_csv(tmp_path / "p.csv")
    assert (tmp_path / "p.csv").read_text() == (
        "alpha,loss,acc\n-1.0,1.0,0.5\n0.5,2.0,0.25\n"
    )
    assert repr(one) == (
        "LossProfile(2 points, 3 samples; bumps: loss 1, acc 0.25)"
    )
    (tmp_path / "p.json").write_text(
        '{"format": "lightning-rebasin-loss-profile"}'
    )
    with pytest.raises(DataError, match="malformed profile"):
        LossProfile.from_json(tmp_path / "p.json")


def test_wrong_tables_are_refused():
    with pytest.raises(DataError, match="ascend"):
        LossProfile((0.0, 0.0), {})
    with pytest.raises(DataError, match="3 values for 1 places"):
        LossProfile((0.0,), {"loss": (1.0, 2.0, 3.0)})
    with pytest.raises(DataError, match="'acc'"):
        profile((1, 2)).bump("acc")
