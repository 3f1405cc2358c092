"""Importance: the weighted objective, in both engines and for several networks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lightning_rebasin import PermutationSpec, match_many, match_weights
from lightning_rebasin.matching.importance import weighted
from lightning_rebasin.matching.straight_through import Projector
from lightning_rebasin.symmetry import Importance

SHAPES = {"w": (3, 2), "v": (1, 3)}
SPEC = PermutationSpec.from_table({"w": ("h", None), "v": (None, "h")}, SHAPES)


def with_importance(weights: tuple[float, float]) -> PermutationSpec:
    info = replace(SPEC.tensors["w"], importance=Importance(1, weights))
    return replace(SPEC, tensors={**SPEC.tensors, "w": info})


def state(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator)
        for name, shape in SHAPES.items()
    }


def test_nothing_important_changes_nothing():
    one = state(0)
    assert weighted(SPEC, one) is one


def test_the_objective_is_weighted():
    spec, a = with_importance((9.0, 1.0)), state(0)
    found = match_weights(spec, a, a)
    w, v = a["w"].double(), a["v"].double()
    expected = 9 * w[:, 0].square().sum() + w[:, 1].square().sum()
    assert found.objective == pytest.approx(
        (expected + v.square().sum()).item()
    )


def test_the_important_column_decides():
    order = torch.tensor([2, 0, 1])
    a = {"w": torch.tensor([[1.0, 0], [0, 0], [-1, 0]]), "v": torch.zeros(1, 3)}  # fmt: skip
    noise = torch.tensor([[0.0, 3], [0, -3], [0, 0]])
    b = {"w": a["w"][order] + noise, "v": a["v"]}
    a = {"w": a["w"] + noise, "v": a["v"]}
    heavy = match_weights(with_importance((100.0, 1.0)), a, b).permutation
    light = match_weights(with_importance((0.01, 1.0)), a, b).permutation
    assert heavy["h"].tolist() == torch.argsort(order).tolist()
    assert light.is_identity


def test_several_networks_are_weighted_too():
    spec, states = with_importance((9.0, 1.0)), [state(0), state(0)]
    found = match_many(spec, states)
    one = match_weights(spec, *states)
    # ½ · ½ of the product of two equal networks
    assert found.objective == pytest.approx(one.objective / 4)


def test_files_hold_importance():
    spec = with_importance((9.0, 1.0))
    assert PermutationSpec.from_dict(spec.to_dict()) == spec
    assert spec != SPEC
    assert "importance" not in SPEC.to_dict()["tensors"]["w"]


def test_the_straight_through_projection_is_the_same_matching():
    """What a MergeModule projects onto is what weight matching would choose."""
    spec = with_importance((50.0, 0.01))
    differs = 0
    for seed in range(12):
        a, b = state(seed), state(seed + 100)
        projector = Projector(spec, a, b)
        found = projector.project(a, 0).permutation
        wanted = match_weights(spec, a, b, init="identity").permutation
        assert found == wanted
        plain = match_weights(SPEC, a, b, init="identity").permutation
        differs += not torch.equal(found["h"], plain["h"])
    assert differs > 3
