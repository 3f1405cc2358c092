"""An order that both lengths agree on wins, and the way between both lengths."""

from __future__ import annotations

import torch
from torch import nn

from lightning_rebasin import infer_spec
from lightning_rebasin.matching import MatchResult
from lightning_rebasin.matching.result import Descent
from lightning_rebasin.matching.search.two_gauges import (
    TRAINED,
    TwoGauges,
    better_of,
    stretches,
)
from lightning_rebasin.symmetry import Group, PermutationSpec, Transform

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


def test_there_and_back_is_the_same_transform() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    a = net.state_dict()
    spec = infer_spec(net, torch.randn(4, 3).double(), kinds="all")
    generator = torch.Generator().manual_seed(1)
    moved = Transform.random(spec, generator)
    networks = TwoGauges.of(spec, a, moved.apply(a))
    there = networks.to_balanced(moved)
    back = networks.from_balanced(there)
    for name, element in moved.elements.items():
        torch.testing.assert_close(back.elements[name], element)
    # Between balanced networks a scaled copy is an order.
    found = networks.to_balanced(moved.inverse())
    for group in spec.groups.values():
        if group.kind == "scale":
            element = found.elements[group.id]
            torch.testing.assert_close(element, torch.ones_like(element))
