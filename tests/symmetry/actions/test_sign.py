"""Signs: a group of ±1, its own contragredient."""

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
from lightning_rebasin.symmetry.actions.sign import SIGN
from lightning_rebasin.symmetry.spec.values import Group

groups = st.builds(
    inside, st.just("sign"), st.integers(1, 5), st.integers(0, 3)
)
seeds = st.integers(0, 2**31)
GROUP = inside("sign", 4, 2)


@given(groups, seeds)
@settings(deadline=None, max_examples=25)
def test_elements_are_a_group_that_acts(group: Group, seed: int) -> None:
    assert_group(SIGN, group, seed)


@given(groups, seeds)
@settings(deadline=None, max_examples=25)
def test_readers_see_what_they_saw(group: Group, seed: int) -> None:
    assert_products_kept(SIGN, group, seed)


def test_elements_follow_from_the_generator() -> None:
    assert_drawn_from_state(SIGN, GROUP)


def test_a_checked_element_is_a_private_copy() -> None:
    assert_private_copy(SIGN, GROUP)


@pytest.mark.parametrize("seed", [0, 1])
def test_units_keep_dtype_and_device(seed: int) -> None:
    assert_rounded_once(SIGN, GROUP, seed)


def test_files_keep_elements(tmp_path: Path) -> None:
    assert_kept_by_files(SIGN, GROUP, str(tmp_path / "transform.pt"))


def test_an_odd_function_keeps_its_signs() -> None:
    """``Nᵀ tanh(P x)`` is the same function; with an even one it is another."""
    element = torch.tensor([1.0, -1.0, -1.0]).double()
    group = inside("sign", 3)
    writers, readers = some_units(group, 0, 2), some_units(group, 1, 4)
    x = torch.linspace(-1, 1, 10).double().reshape(2, 5)
    written = SIGN.apply(group, element, writers, 1)
    read = SIGN.apply(group, element, readers, -1)
    for function, same in ((torch.tanh, True), (torch.relu, False)):
        before = readers.mT @ function(writers @ x)
        after = read.mT @ function(written @ x)
        assert torch.allclose(before, after, rtol=1e-12) == same


def test_an_even_power_sees_no_sign() -> None:
    units = some_units(GROUP, 0)
    far = SIGN.far(GROUP)
    for power in (2, -2, 0):
        assert torch.equal(SIGN.apply(GROUP, far, units, power), units)
    assert torch.equal(SIGN.apply(GROUP, far, units, 3), -units)
    assert SIGN.distance(GROUP, far) == 1


def test_a_random_element_is_signs() -> None:
    (element,) = drawn(SIGN, inside("sign", 200), 1, 0)
    assert set(element.tolist()) == {1.0, -1.0}
    assert 70 < int((element > 0).sum()) < 130


@pytest.mark.parametrize(
    "bad",
    [
        torch.ones(3),
        torch.tensor([1.0, 0.0]),
        torch.tensor([1.0, 2.0]),
        torch.tensor([1.0, torch.nan]),
        torch.tensor([1, 1j]),
        torch.tensor([True, True]),
        [1.0, 1.0],
    ],
)
def test_what_is_no_sign_is_refused(bad: torch.Tensor) -> None:
    with pytest.raises(TransformError, match=r"group 'inner': signs must be"):
        SIGN.check(inside("sign", 2), bad)


def test_random_signs_are_never_the_identity() -> None:
    """The gate would take it for a proof."""
    group = Group("g", 1, None, "sign")
    for seed in range(20):
        drawn = SIGN.random(group, torch.Generator().manual_seed(seed))
        assert drawn.tolist() == [-1]
