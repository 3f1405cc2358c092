"""Positive scales: a group, undone by whoever reads."""

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
from lightning_rebasin.symmetry.actions.scale import LARGEST, SCALE
from lightning_rebasin.symmetry.spec.values import Group

groups = st.builds(
    inside, st.just("scale"), st.integers(1, 5), st.integers(0, 3)
)
seeds = st.integers(0, 2**31)
GROUP = inside("scale", 4, 2)


@given(groups, seeds)
@settings(deadline=None, max_examples=25)
def test_elements_are_a_group_that_acts(group: Group, seed: int) -> None:
    assert_group(SCALE, group, seed)


@given(groups, seeds)
@settings(deadline=None, max_examples=25)
def test_readers_see_what_they_saw(group: Group, seed: int) -> None:
    assert_products_kept(SCALE, group, seed)


def test_elements_follow_from_the_generator() -> None:
    assert_drawn_from_state(SCALE, GROUP)


def test_a_checked_element_is_a_private_copy() -> None:
    assert_private_copy(SCALE, GROUP)


@pytest.mark.parametrize("seed", [0, 1])
def test_units_keep_dtype_and_device(seed: int) -> None:
    assert_rounded_once(SCALE, GROUP, seed)


def test_files_keep_elements(tmp_path: Path) -> None:
    assert_kept_by_files(SCALE, GROUP, str(tmp_path / "transform.pt"))


def test_a_homogeneous_function_keeps_its_scales() -> None:
    group = inside("scale", 3)
    (element,) = drawn(SCALE, group, 1, 0)
    writers, readers = some_units(group, 0, 2), some_units(group, 1, 4)
    x = torch.linspace(-1, 1, 10).double().reshape(2, 5)
    written = SCALE.apply(group, element, writers, 1)
    for exponent, power in ((1, -1), (2, -2)):
        read = SCALE.apply(group, element, readers, power)
        before = readers.mT @ torch.relu(writers @ x) ** exponent
        after = read.mT @ torch.relu(written @ x) ** exponent
        torch.testing.assert_close(before, after)


def test_random_scales_stay_within_two_powers_of_e() -> None:
    (element,) = drawn(SCALE, inside("scale", 500), 1, 0)
    logarithms = element.log()
    assert float(logarithms.abs().max()) <= 2
    assert float(logarithms.min()) < -1.8 < 1.8 < float(logarithms.max())


@given(groups, st.floats(-1e6, 1e6))
@settings(deadline=None, max_examples=25)
def test_learned_scales_are_elements(group: Group, height: float) -> None:
    latent = SCALE.latent(group)
    assert latent is not None
    assert torch.equal(
        SCALE.from_latent(group, latent).double(), SCALE.identity(group)
    )
    learned = SCALE.from_latent(group, latent + height)
    SCALE.check(group, learned)
    assert 0.0099 < float(learned.min()) <= float(learned.max()) < 101


@given(groups, seeds)
@settings(deadline=None, max_examples=25)
def test_balanced_units_are_as_long_where_they_are_read(
    group: Group, seed: int
) -> None:
    writers, readers = some_units(group, seed, 3), some_units(group, seed + 1)
    c = SCALE.balance(group, writers @ writers.mT, readers @ readers.mT)
    written = SCALE.apply(group, c, writers, 1)
    read = SCALE.apply(group, c, readers, -1)
    torch.testing.assert_close(
        written.norm(dim=-1), read.norm(dim=-1), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize(
    "bad",
    [
        torch.ones(3),
        torch.tensor([1.0, 0.0]),
        torch.tensor([1.0, -1.0]),
        torch.tensor([1.0, torch.nan]),
        torch.tensor([1.0, torch.inf]),
        torch.tensor([1.0, 2 * LARGEST]),
        torch.tensor([1.0, 0.5 / LARGEST]),
        torch.tensor([1, 1j]),
        [1.0, 1.0],
    ],
)
def test_what_is_no_scale_is_refused(bad: torch.Tensor) -> None:
    with pytest.raises(TransformError, match=r"group 'inner': scales must be"):
        SCALE.check(inside("scale", 2), bad)


def test_the_limits_themselves_are_scales() -> None:
    limits = torch.tensor([LARGEST, 1 / LARGEST], dtype=torch.float64)
    assert torch.equal(SCALE.check(inside("scale", 2), limits), limits)
