"""Rotations of units, and those that keep the mean direction."""

from __future__ import annotations

from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from helpers.elements import (
    assert_drawn_from_state,
    assert_group,
    assert_kept_by_files,
    assert_private_copy,
    assert_products_kept,
    assert_rounded_once,
    drawn,
    inside,
    some_units,
)
from hypothesis import given, settings

from lightning_rebasin.errors import TransformError
from lightning_rebasin.symmetry.actions.action import Action
from lightning_rebasin.symmetry.actions.orthogonal import (
    MEAN_FIXING,
    ORTHOGONAL,
    with_mean_kept,
)

KINDS = st.sampled_from([ORTHOGONAL, MEAN_FIXING])
sizes, outers, seeds = (
    st.integers(2, 5),
    st.integers(0, 3),
    st.integers(0, 2**31),
)
both = pytest.mark.parametrize(
    "action", [ORTHOGONAL, MEAN_FIXING], ids=lambda action: action.kind
)


@given(KINDS, sizes, outers, seeds)
@settings(deadline=None, max_examples=40)
def test_elements_are_a_group_that_acts(
    action: Action, size: int, outer: int, seed: int
) -> None:
    group = inside(action.kind, size, outer)
    assert_group(action, group, seed)
    assert_products_kept(action, group, seed)
    (element,) = drawn(action, group, 1, seed)
    units = some_units(group, seed)
    lengths = action.apply(group, element, units, 1).norm(dim=1)
    torch.testing.assert_close(lengths, units.norm(dim=1))
    determinants = torch.linalg.det(element).abs()
    torch.testing.assert_close(determinants, torch.ones_like(determinants))


@both
def test_what_every_kind_owes(action: Action, tmp_path: Path) -> None:
    group = inside(action.kind, 4, 2)
    assert_drawn_from_state(action, group)
    assert_private_copy(action, group)
    assert_rounded_once(action, group, 0)
    assert_kept_by_files(action, group, str(tmp_path / "transform.pt"))


@both
def test_reflections_are_drawn_as_often_as_rotations(action: Action) -> None:
    group = inside(action.kind, 3, 400)
    (element,) = drawn(action, group, 1, 0)
    rotations = int((torch.linalg.det(element) > 0).sum())
    assert 150 < rotations < 250
    # Uniform: no direction is preferred, so that all entries but those of the mean average to 0.
    mean = 1 / 3 if action is MEAN_FIXING else 0.0
    assert float((element.mean(0) - mean).abs().max()) < 0.1


@given(sizes, seeds)
@settings(deadline=None, max_examples=25)
def test_layer_norm_commutes_with_what_keeps_the_mean(
    size: int, seed: int
) -> None:
    group = inside("orthogonal_mean", size)
    (element,) = drawn(MEAN_FIXING, group, 1, seed)
    one = torch.ones(size, dtype=torch.float64)
    torch.testing.assert_close(element @ one, one)
    torch.testing.assert_close(element.mT @ one, one)
    x = some_units(group, seed)[0].mT

    def normalised(rows: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.layer_norm(rows, (size,))

    torch.testing.assert_close(
        normalised(x @ element.mT), normalised(x) @ element.mT
    )


@both
@pytest.mark.parametrize("height", [0.1, 10.0])
def test_learned_rotations_are_elements(action: Action, height: float) -> None:
    group = inside(action.kind, 4, 2)
    latent = action.latent(group)
    assert latent is not None
    torch.testing.assert_close(
        action.from_latent(group, latent).double(),
        action.identity(group),
        rtol=0,
        atol=1e-6,
    )
    generator = torch.Generator().manual_seed(0)
    random = height * torch.randn(latent.shape, generator=generator).double()
    learned = action.from_latent(group, random)
    action.check(group, learned)
    determinants = torch.linalg.det(learned)
    torch.testing.assert_close(determinants, torch.ones_like(determinants))
    assert action.distance(group, learned) > 0.01


def test_one_unit_has_only_its_mean() -> None:
    alone = inside("orthogonal_mean", 1)
    assert MEAN_FIXING.trivial(alone)
    assert not MEAN_FIXING.trivial(inside("orthogonal_mean", 2))
    assert not ORTHOGONAL.trivial(inside("orthogonal", 1))
    (element,) = drawn(MEAN_FIXING, alone, 1, 0)
    torch.testing.assert_close(element, MEAN_FIXING.identity(alone))


def test_with_two_units_the_mean_leaves_a_swap() -> None:
    swap = with_mean_kept(torch.tensor([[-1.0]]).double(), 2)
    expected = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).double()
    torch.testing.assert_close(swap, expected)


QUARTER = torch.tensor([[0.0, -1.0], [1.0, 0.0]])


@both
@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (torch.eye(3), "floating-point tensor of the shape"),
        (torch.eye(2).long(), "floating-point tensor of the shape"),
        ([[1.0, 0.0], [0.0, 1.0]], "floating-point tensor of the shape"),
        (torch.full((2, 2), 0.5), "not orthogonal"),
        (torch.full((2, 2), torch.nan), "not orthogonal"),
        (QUARTER @ QUARTER * 1.001, "not orthogonal|mean direction"),
    ],
)
def test_what_is_no_rotation_is_refused(
    action: Action, bad: torch.Tensor, why: str
) -> None:
    with pytest.raises(TransformError, match=f"group 'inner': .*({why})"):
        action.check(inside(action.kind, 2), bad)


def test_a_rotation_that_turns_the_mean_is_refused_only_there() -> None:
    ORTHOGONAL.check(inside("orthogonal", 2), QUARTER)
    with pytest.raises(
        TransformError, match="group 'inner': the mean direction is not kept"
    ):
        MEAN_FIXING.check(inside("orthogonal_mean", 2), QUARTER)
