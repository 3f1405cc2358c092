"""measure_path against measure_barrier and closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.classifier import val_loader
from helpers.pairs import two_classifiers
from helpers.untouched import untouched
from torch import nn

from lightning_rebasin import measure_barrier, measure_path
from lightning_rebasin.errors import (
    ConfigurationError,
    DataError,
    StateDictError,
)
from lightning_rebasin.landscape.barrier import BarrierCurve
from lightning_rebasin.landscape.path_curve import PathCurve
from lightning_rebasin.landscape.paths import Bezier, Line


def test_along_the_line_it_is_the_barrier():
    module, a, b = two_classifiers()
    barrier = measure_barrier(module, a, b, val_loader(), points=5)
    curve = measure_path(module, Line(a, b), val_loader(), 5)
    assert curve.lambdas == barrier.lambdas
    assert curve.values == barrier.values
    assert curve.higher_is_better == barrier.higher_is_better
    assert curve.normalised_length == pytest.approx(1.0, rel=1e-9)
    own = [n for n, _ in module.named_parameters()]
    expected = math.sqrt(sum(float((a[n] - b[n]).square().sum()) for n in own))
    assert curve.length == pytest.approx(expected, rel=1e-6)


def test_a_known_valley():
    """L = (‖w‖ − 1)²: the chain over the top of the circle's octagon and the Bezier arc, by formula."""
    module = nn.Linear(2, 1, bias=False).double()

    def loss(net, _):
        return (net.weight.norm() - 1).square()

    def at(x, y):
        return {"weight": torch.tensor([[x, y]], dtype=torch.float64)}

    chain = [at(1.0, 0.0), at(0.0, 1.0), at(-1.0, 0.0)]
    batches = [torch.zeros(1, 2)]
    curve = measure_path(module, chain, batches, 5, loss=loss)
    # Corners lie in the valley; half way between them the chord is √½ from the middle.
    low = (math.sqrt(0.5) - 1) ** 2
    assert curve.values["loss"] == pytest.approx(
        (0, low, 0, low, 0), abs=1e-14
    )
    assert curve.normalised_length == pytest.approx(math.sqrt(2), rel=1e-12)
    straight = measure_path(
        module, [chain[0], chain[2]], batches, 5, loss=loss
    )
    assert straight.height("loss") == 1.0
    bent = Bezier((chain[0], at(0.0, 2.0), chain[2]))
    curve = measure_path(module, bent, batches, 3, loss=loss)
    assert curve.values["loss"] == pytest.approx((0, 0, 0), abs=1e-14)


def test_corners_between_the_points_are_measured():
    module = nn.Linear(1, 1, bias=False)
    chain = [{"weight": torch.tensor([[w]])} for w in (0.0, 5.0, 1.0, 2.0)]
    curve = measure_path(
        module, chain, [torch.ones(1, 1)], 2, loss=lambda m, x: m(x).mean()
    )
    assert curve.lambdas == (0.0, 1 / 3, 0.5, 2 / 3, 1.0)
    assert curve.values["loss"] == pytest.approx((0.0, 5.0, 3.0, 1.0, 2.0))
    assert curve.lengths == pytest.approx((0, 5, 7, 9, 10))


def test_the_summary_integrates_over_t_and_over_length():
    curve = PathCurve(
        (0.0, 0.5, 1.0), {"loss": (0.0, 2.0, 0.0)}, lengths=(0.0, 3.0, 4.0)
    )
    assert curve.summary("loss") == (0.0, 2.0, 1.0, 1.0)
    curve = PathCurve(
        (0.0, 0.5, 1.0), {"loss": (0.0, 0.0, 2.0)}, lengths=(0.0, 3.0, 4.0)
    )
    assert curve.summary("loss") == (0.0, 2.0, 0.5, 0.25)
    with pytest.raises(DataError, match="'acc'"):
        curve.summary("acc")


def test_files_come_back(tmp_path):
    curve = PathCurve(
        (0.0, 0.5, 1.0),
        {"loss": (0.0, 2.0, 0.0), "acc": (1.0, 0.5, 1.0)},
        samples=7,
        lengths=(0.0, 3.0, 4.0),
        straight=2.0,
    )
    curve.to_json(tmp_path / "c.json")
    assert PathCurve.from_json(tmp_path / "c.json") == curve
    assert BarrierCurve.from_json(tmp_path / "c.json").height("loss") == 2.0
    curve.to_csv(tmp_path / "c.csv")
    assert (tmp_path / "c.csv").read_text().splitlines()[2] == "0.5,2.0,0.5"
    assert "2 × the straight way" in repr(curve)
    BarrierCurve((0.0, 1.0), {}).to_json(tmp_path / "b.json")
    with pytest.raises(DataError, match="malformed"):
        PathCurve.from_json(tmp_path / "b.json")
    with pytest.raises(DataError, match="2 lengths for 3"):
        PathCurve((0.0, 0.5, 1.0), {}, lengths=(0.0, 1.0))


def test_the_module_is_left_alone():
    module, a, b = two_classifiers(dropout=0.5, batch_norm=True, noise=True)
    train = list(val_loader(seed=3))
    with untouched(module):
        measure_path(module, [a, b, a], val_loader(), 3, batch_norm=train)


def test_wrong_paths_are_named():
    module, a, b = two_classifiers()
    with pytest.raises(ConfigurationError, match="two anchors"):
        measure_path(module, [a], val_loader(), 3)
    del b["net.fc1.bias"]
    with pytest.raises(StateDictError, match=r"net\.fc1\.bias"):
        measure_path(module, [a, b], val_loader(), 3)
    with pytest.raises(DataError, match="no batch"):
        measure_path(module, [a, a], [], 3)
