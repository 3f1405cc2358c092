"""An order that both lengths agree on wins; on the shared LeNets that is the one of the trained lengths."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.models import LeNet, load_weights
from helpers.shared import shared_path
from torch import nn

from lightning_rebasin import infer_spec, match_weights
from lightning_rebasin.matching import MatchResult
from lightning_rebasin.matching.objective import objective
from lightning_rebasin.matching.result import Descent
from lightning_rebasin.matching.search.two_gauges import (
    TRAINED,
    better_of,
    stretches,
)
from lightning_rebasin.symmetry import Group, PermutationSpec, Transform
from lightning_rebasin.symmetry.actions.balance import balancing
from lightning_rebasin.symmetry.edit.permuting import permuting

SPEC = PermutationSpec.from_table({"w": ("h", None)}, {"w": (3, 1)})
DESCENT = Descent(TRAINED, (1.0,), converged=True, seconds=0.0)


def transform(*order: int) -> Transform:
    return Transform.of(SPEC, {"h": torch.tensor(order)})


FIRST, OTHER = transform(0, 2, 1), transform(2, 1, 0)


def chosen(
    canonical: tuple[float, float],
    trained: tuple[float, float],
    nothing: float = 0.0,
) -> Transform:
    """What is chosen if the first and the other have these objectives, and doing nothing that one."""
    found = MatchResult(FIRST, canonical[0], nothing)
    result = better_of(
        found,
        OTHER,
        DESCENT,
        lambda t: canonical[t == OTHER],
        lambda t: trained[t == OTHER],
    )
    assert result.descents == (DESCENT,)
    assert result.objective == canonical[result.transform == OTHER]
    return result.transform


def test_what_both_lengths_agree_on_wins() -> None:
    assert chosen((43.6, 36.5), (28.2, 36.0)) == OTHER
    assert chosen((83.5, 81.7), (146.0, 148.0)) == FIRST
    # A scaled copy: in lengths of its own it looks like any other network.
    assert chosen((100.0, 30.0), (20.0, 40.0)) == FIRST


def test_nothing_is_gained_from_negative_objectives_or_below_doing_nothing() -> (
    None
):
    assert chosen((-1.0, -5.0), (-1.0, -5.0), -9.0) == FIRST
    assert chosen((10.0, 9.0), (1.0, 50.0), nothing=9.5) == FIRST


def test_which_specs_have_two_gauges() -> None:
    assert not stretches(SPEC)
    inner = Group("s", 1, SPEC.groups["h"], kind="scale")
    spec = PermutationSpec(
        {**SPEC.groups, "s": inner}, SPEC.tensors, SPEC.maps
    )
    assert stretches(spec)


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
