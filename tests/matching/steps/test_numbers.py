"""Signs against all signs tried one by one; scales after balancing against what balancing is for."""

from __future__ import annotations

import itertools

import pytest
import torch
from helpers.elements import drawn, inside, some_units
from torch import Tensor

from lightning_rebasin.matching.steps.numbers import SCALE, SIGN
from lightning_rebasin.matching.steps.step import step_of
from lightning_rebasin.symmetry.actions.action import action_of


def costs_of(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1)


@pytest.mark.parametrize("seed", range(4))
def test_no_other_signs_gain_more(seed: int) -> None:
    group = inside("sign", 4)
    a, b = some_units(group, seed), some_units(group, seed + 100)
    costs = costs_of(a, b)
    found, value = SIGN.best(costs, "auto")
    tried = {}
    for signs in itertools.product((1.0, -1.0), repeat=4):
        tried[signs] = float((torch.tensor(signs) * costs[0]).sum())
    best = max(tried, key=lambda signs: tried[signs])
    assert tuple(found[0].tolist()) == best
    assert value.item() == pytest.approx(tried[best])
    action_of(group).check(group, found[0])


def test_where_nothing_decides_the_sign_stays() -> None:
    found, value = SIGN.best(torch.zeros(2, 3).double(), "auto")
    assert found.tolist() == [[1, 1, 1]] * 2
    assert value.tolist() == [0, 0]


def test_a_scaled_copy_needs_no_scale_once_both_are_balanced() -> None:
    """Closed form: a balanced unit has ``‖w‖ = ‖r‖``, whatever scale was hidden in it."""
    group = inside("scale", 5)
    action = action_of(group)
    (hidden,) = drawn(action, group, 1, 2)
    writers, readers = some_units(group, 0), some_units(group, 1)
    ends = []
    for element in (action.identity(group), hidden):
        w = action.apply(group, element, writers, 1)
        r = action.apply(group, element, readers, -1)
        c = action.balance(group, w @ w.mT, r @ r.mT)
        ends.append(
            (
                action.apply(group, c, w, 1),
                action.apply(group, c, r, -1),
            )
        )
    (w, r), (other_w, other_r) = ends
    torch.testing.assert_close(w, other_w, rtol=1e-6, atol=1e-6)
    costs = costs_of(w, other_w) + costs_of(r, other_r)
    found, value = SCALE.best(costs, "auto")
    assert torch.equal(found, torch.ones(1, 5).double())
    lengths = w.square().sum() + r.square().sum()
    assert value.item() == pytest.approx(float(lengths), rel=1e-6)


def test_each_step_serves_its_kind() -> None:
    assert step_of(inside("sign", 2)) is SIGN
    assert step_of(inside("scale", 2)) is SCALE
