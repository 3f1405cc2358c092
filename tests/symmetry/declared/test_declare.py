"""Writing declarations: short, and refused where they make no sense."""

from __future__ import annotations

import inspect

import pytest
import torch
from helpers.mixtures import Bumps
from torch import nn

from lightning_rebasin import declare, on
from lightning_rebasin.errors import SpecError
from lightning_rebasin.symmetry import Group, Importance


def test_a_user_declares_in_fewer_than_twenty_lines():
    method = inspect.getsource(Bumps.symmetry_spec)
    assert len(method.splitlines()) < 20
    assert len(inspect.getsource(Bumps).splitlines()) < 30


def test_places_become_maps():
    spec = Bumps(3, 2, 4).symmetry_spec()
    assert {g.id: g.shape for g in spec.groups.values()} == {
        "component": (3,),
        "sign": (3, 1),
    }
    assert spec.tensors_of("sign") == ("direction",)
    assert spec.tensors_of("component") == ("height",)
    assert spec.maps["height"].dims_of("component") == (1,)


def test_several_dimensions_positions_and_buffers():
    net = nn.BatchNorm1d(6)
    half = Group("half", 2)
    rows = torch.arange(6).reshape(2, 3)
    spec = declare(
        net,
        {"weight": [on(half, 0, positions=rows)], "running_mean": []},
        importance={"weight": Importance(0, (1.0,) * 6)},
    )
    (component,) = spec.maps["weight"].components
    assert component.index.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert spec.tensors["running_mean"].kind == "buffer"
    assert spec.tensors["weight"].importance == Importance(0, (1.0,) * 6)


@pytest.mark.parametrize(
    ("places", "message"),
    [
        (
            {"wieght": [on(Group("a", 3), 0)]},
            "'wieght', a tensor that it does",
        ),
        ({"weight": [on(Group("a", 3), 2)]}, "dimensions .2,. of 'weight'"),
        ({"weight": [on(Group("a", 3))]}, "dimensions .. of 'weight'"),
        ({"weight": [on(Group("a", 4), 0)]}, "expected .4, copies."),
        (
            {"weight": [on(Group("a", 3), 0), on(Group("a", 2), 1)]},
            "two different groups are declared as 'a'",
        ),
    ],
)
def test_nonsense_is_refused(places, message):
    with pytest.raises(SpecError, match=message):
        declare(nn.Linear(2, 3), places)


def test_importance_must_be_positive_and_fit():
    for weights in ((1.0, 2.0), (1.0, 2.0, 0.0)):
        with pytest.raises(SpecError, match="one positive number for each"):
            declare(
                nn.Linear(2, 3),
                {},
                importance={"weight": Importance(0, weights)},
            )
