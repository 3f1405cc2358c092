"""Invertible maps of units: a group, kept away from singular matrices."""

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
)
from hypothesis import given, settings

from lightning_rebasin.errors import TransformError
from lightning_rebasin.symmetry.actions.linear import LARGEST_CONDITION, LINEAR
from lightning_rebasin.symmetry.spec.values import Group

groups = st.builds(
    inside, st.just("linear"), st.integers(1, 5), st.integers(0, 3)
)
seeds = st.integers(0, 2**31)
GROUP = inside("linear", 4, 2)


@given(groups, seeds)
@settings(deadline=None, max_examples=25)
def test_elements_are_a_group_that_acts(group: Group, seed: int) -> None:
    assert_group(LINEAR, group, seed)


@given(groups, seeds)
@settings(deadline=None, max_examples=25)
def test_readers_see_what_they_saw(group: Group, seed: int) -> None:
    assert_products_kept(LINEAR, group, seed)


def test_elements_follow_from_the_generator() -> None:
    assert_drawn_from_state(LINEAR, GROUP)


def test_a_checked_element_is_a_private_copy() -> None:
    assert_private_copy(LINEAR, GROUP)


@pytest.mark.parametrize("seed", [0, 1])
def test_units_keep_dtype_and_device(seed: int) -> None:
    assert_rounded_once(LINEAR, GROUP, seed)


def test_files_keep_elements(tmp_path: Path) -> None:
    assert_kept_by_files(LINEAR, GROUP, str(tmp_path / "transform.pt"))


def test_readers_get_the_inverse_transposed() -> None:
    group = inside("linear", 2)
    element = torch.tensor([[2.0, 1.0], [0.0, 4.0]]).double()
    units = torch.eye(2).double()[None]
    read = LINEAR.apply(group, element, units, -1)[0]
    assert read.tolist() == [[0.5, 0.0], [-0.125, 0.25]]


@given(groups, seeds)
@settings(deadline=None, max_examples=25)
def test_random_elements_are_well_conditioned(group: Group, seed: int) -> None:
    (element,) = drawn(LINEAR, group, 1, seed)
    logarithms = torch.linalg.svdvals(element).log()
    assert float(logarithms.abs().max()) <= 1 + 1e-9


@given(st.integers(1, 24), seeds, st.sampled_from([0.1, 10.0, 1e4]))
@settings(deadline=None, max_examples=25)
def test_learned_maps_are_elements(
    size: int, seed: int, height: float
) -> None:
    """However far an optimizer runs, what it found is not refused at the end."""
    group = inside("linear", size)
    latent = LINEAR.latent(group)
    assert latent is not None
    assert torch.equal(
        LINEAR.from_latent(group, latent).double(), LINEAR.identity(group)
    )
    direction = torch.zeros(size, size)
    generator = torch.Generator().manual_seed(seed)
    # The worst case: one direction stretched and one shrunk, all others at rest.
    direction[0, 0], direction[-1, -1] = 1, -1
    noise = torch.randn(direction.shape, generator=generator)
    for latent in (height * direction, height * noise):
        LINEAR.check(group, LINEAR.from_latent(group, latent))


def test_learning_can_start_at_the_identity() -> None:
    latent = torch.zeros(3, 3, requires_grad=True)
    LINEAR.from_latent(inside("linear", 3), latent)[0, 1].backward()
    expected = torch.zeros(3, 3)
    expected[0, 1] = 1
    assert latent.grad is not None
    torch.testing.assert_close(latent.grad, expected)


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (torch.eye(3), "floating-point tensor of the shape"),
        (torch.eye(2).long(), "floating-point tensor of the shape"),
        (torch.zeros(2, 2), "nearly singular"),
        (torch.ones(2, 2), "nearly singular"),
        (torch.diag(torch.tensor([1.0, 0.9 / LARGEST_CONDITION])), "singular"),
        (torch.full((2, 2), torch.nan), "NaN or infinity"),
        (torch.diag(torch.tensor([1.0, torch.inf])), "NaN or infinity"),
    ],
)
def test_what_is_no_map_is_refused(bad: torch.Tensor, why: str) -> None:
    with pytest.raises(TransformError, match=f"group 'inner': .*{why}"):
        LINEAR.check(inside("linear", 2), bad)


def test_just_within_the_limit_is_an_element() -> None:
    near = torch.diag(torch.tensor([1.0, 1.1 / LARGEST_CONDITION])).double()
    assert torch.equal(LINEAR.check(inside("linear", 2), near), near)
