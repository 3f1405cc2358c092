"""Signs follow the products; scales stay, because canonical ends are balanced."""

from __future__ import annotations

import torch

from lightning_rebasin.matching.steps.step import step_of
from lightning_rebasin.symmetry import Group

COSTS = torch.tensor([[1.0, -2.0, 0.0]])


def test_signs_make_every_product_positive() -> None:
    found, value = step_of(Group("g", 3, None, "sign")).best(COSTS, "auto")
    assert found.tolist() == [[1, -1, 1]]
    assert value.tolist() == [3]


def test_scales_stay() -> None:
    found, value = step_of(Group("g", 3, None, "scale")).best(COSTS, "auto")
    assert found.tolist() == [[1, 1, 1]]
    assert value.tolist() == [-1]
