"""Matching over other kinds than permutations on networks: good orders, and units as long as the reference's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.models import LeNet, load_weights
from helpers.shared import shared_path
from torch import nn

from lightning_rebasin import infer_spec, match_weights
from lightning_rebasin.matching.objective import objective
from lightning_rebasin.matching.search.two_gauges import TRAINED
from lightning_rebasin.symmetry import Transform
from lightning_rebasin.symmetry.actions.balance import balancing
from lightning_rebasin.symmetry.edit.permuting import permuting


def test_scales_do_not_spoil_the_order_of_two_lenets() -> None:
    """In canonical gauge alone the order has 28.2 of these 36.0, and the barrier four times as high."""
    a, b = (
        load_weights(shared_path(f"data/checkpoints/mnist-lenet/{end}.pt"))
        for end in "ab"
    )
    example = torch.zeros(1, 1, 28, 28)
    spec = infer_spec(LeNet(), example, kinds="all")
    orders = permuting(spec)
    best = match_weights(orders, a, b)
    scaled = match_weights(spec, a, b)
    order = Transform.of(
        orders,
        {name: scaled.transform.elements[name] for name in orders.groups},
    )
    assert objective(orders, a, b, order) > 0.99 * best.objective
    assert scaled.descents[-1].start == TRAINED


def layers(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(6, 9),
        nn.ReLU(),
        nn.Linear(9, 8),
        nn.ReLU(),
        nn.Linear(8, 4),
    ).double()


@pytest.mark.parametrize("init", [None, "random"])
def test_units_get_the_lengths_of_the_reference(init: Any) -> None:
    """A longer source has larger products with anything: a start that stretches it would never be taken back."""
    module, other = layers(0), layers(1)
    a, b = module.state_dict(), other.state_dict()
    spec = infer_spec(module, torch.randn(8, 6).double(), kinds="all")
    found = match_weights(spec, a, b, init=init, restarts=3)
    wanted = balancing(spec, a).elements
    got = balancing(spec, found.transform.apply(b)).elements
    scales = [g.id for g in spec.groups.values() if g.kind == "scale"]
    assert len(scales) == 2
    for name in scales:
        torch.testing.assert_close(got[name], wanted[name])
