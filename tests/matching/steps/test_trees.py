"""The recursions over nodes and places against every element tried one by one."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from lightning_rebasin.matching.steps.trees import FLIPS, SPLITS
from lightning_rebasin.symmetry.actions.action import Action, action_of
from lightning_rebasin.symmetry.spec.values import Group


def all_flips(size: int) -> list[Tensor]:
    return [
        torch.tensor(flips)
        for flips in itertools.product((False, True), repeat=size)
    ]


def all_splits(size: int) -> list[Tensor]:
    found = []
    for order in itertools.permutations(range(1, size + 1)):
        for signs in itertools.product((1, -1), repeat=size):
            found.append(torch.tensor(order) * torch.tensor(signs))
    return found


def value(action: Action, group: Group, element: Tensor, units: Tensor) -> Tensor:  # fmt: skip
    """``Σ_i ⟨A_i, (element B)_i⟩`` from the products ⟨A_i, B_j⟩, by acting on the identity's columns."""
    moved = action.apply(group, element, units.mT.contiguous(), 1)
    return moved.diagonal(dim1=-2, dim2=-1).sum(-1)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("step", "kind", "size", "leaves", "every"),
    [
        (FLIPS, "flips", 1, 2, all_flips),
        (FLIPS, "flips", 3, 4, all_flips),
        (FLIPS, "flips", 7, 8, all_flips),
        (SPLITS, "splits", 1, 2, all_splits),
        (SPLITS, "splits", 2, 4, all_splits),
        (SPLITS, "splits", 3, 8, all_splits),
    ],
)
def test_the_step_is_the_best_of_all_elements(
    step, kind, size, leaves, every, seed
):
    generator = torch.Generator().manual_seed(seed)
    costs = {
        n: torch.randn(4, n, n, generator=generator, dtype=torch.float64)
        for n in (size, leaves)
    }
    one = Group("tree", size, None, kind)
    action = action_of(one)
    elements, values = step.best_of(one, costs, "auto")
    for k in range(4):
        tried = [
            sum(
                float(value(action, one, element, costs[n][k : k + 1]))
                for n in costs
            )
            for element in every(size)
        ]
        assert values[k].item() == pytest.approx(max(tried))
        best = every(size)[tried.index(max(tried))]
        assert torch.equal(elements[k], best)


@pytest.mark.parametrize(
    ("step", "kind", "size"), [(FLIPS, "flips", 3), (SPLITS, "splits", 2)]
)
def test_what_has_no_cost_stays(step, kind, size):
    one = Group("tree", size, None, kind)
    elements, values = step.best(torch.zeros(2, size, size).double(), "auto")
    identity = action_of(one).identity(one)
    assert torch.equal(elements, identity.expand(2, -1))
    assert values.tolist() == [0, 0]


def test_leaves_alone_decide():
    one = Group("tree", 1, None, "flips")
    swapped = torch.tensor([[[0.0, 2.0], [1.0, 0.0]]], dtype=torch.float64)
    elements, values = FLIPS.best_of(one, {2: swapped}, "auto")
    assert elements.tolist() == [[True]]
    assert values.tolist() == [3.0]
