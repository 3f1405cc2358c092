"""What a layer says of itself."""

from __future__ import annotations

import dataclasses

import torch

from lightning_rebasin.merging.refit.fitted import FittedLayer, Norm
from lightning_rebasin.merging.refit.places import Place
from lightning_rebasin.merging.refit.slots import Slots
from lightning_rebasin.merging.refit.systems import Product

ONE = torch.zeros(1, 1, dtype=torch.long)
PLAIN = FittedLayer(
    "w",
    Place("aten.mm", 0),
    Product("self", "mat2"),
    Slots("w", ONE[None]),
    None,
    None,
    (),
    1.0,
    (),
    joins=False,
    positions=1,
)


def test_a_layer_is_judged_at_its_last_step_or_where_it_runs() -> None:
    assert PLAIN.target == Place("aten.mm", 0)
    steps = (Place("aten.mul", 0), Place("aten.add", 3))
    assert dataclasses.replace(PLAIN, steps=steps).target == steps[1]


def test_a_bias_or_a_norm_takes_up_a_shift() -> None:
    norm = Norm(Slots("m", ONE), Slots("v", ONE), None, None, 0.0)
    assert not PLAIN.intercept
    assert dataclasses.replace(PLAIN, bias=Slots("b", ONE)).intercept
    assert dataclasses.replace(PLAIN, norm=norm).intercept


def test_the_written_tensors_are_those_of_layer_and_norm() -> None:
    norm = Norm(Slots("m", ONE), Slots("v", ONE), Slots("g", ONE), None, 0.0)
    layer = dataclasses.replace(PLAIN, bias=Slots("b", ONE), norm=norm)
    assert PLAIN.written == {"w"}
    assert layer.written == {"w", "b", "m", "v", "g"}
