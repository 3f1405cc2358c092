"""One complex factor for each pair of units, against PyTorch's complex numbers."""

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
from lightning_rebasin.symmetry.actions.plane import LARGEST, PLANE
from lightning_rebasin.symmetry.spec.values import Group

groups = st.builds(
    inside, st.just("plane"), st.sampled_from([2, 4, 6]), st.integers(0, 3)
)
seeds = st.integers(0, 2**31)
GROUP = inside("plane", 4, 2)


@given(groups, seeds)
@settings(deadline=None, max_examples=25)
def test_elements_are_a_group_that_acts(group: Group, seed: int) -> None:
    assert_group(PLANE, group, seed)


@given(groups, seeds)
@settings(deadline=None, max_examples=25)
def test_readers_see_what_they_saw(group: Group, seed: int) -> None:
    assert_products_kept(PLANE, group, seed)


def test_elements_follow_from_the_generator() -> None:
    assert_drawn_from_state(PLANE, GROUP)


def test_a_checked_element_is_a_private_copy() -> None:
    assert_private_copy(PLANE, GROUP)


@pytest.mark.parametrize("seed", [0, 1])
def test_units_keep_dtype_and_device(seed: int) -> None:
    assert_rounded_once(PLANE, GROUP, seed)


def test_files_keep_elements(tmp_path: Path) -> None:
    assert_kept_by_files(PLANE, GROUP, str(tmp_path / "transform.pt"))


@given(groups, seeds)
@settings(deadline=None, max_examples=25)
def test_factors_multiply_as_complex_numbers(group: Group, seed: int) -> None:
    u, v = drawn(PLANE, group, 2, seed)
    first, second = torch.view_as_complex(u), torch.view_as_complex(v)
    close = torch.testing.assert_close
    product = torch.view_as_complex(PLANE.compose(group, u, v))
    close(product, first * second)
    close(torch.view_as_complex(PLANE.inverse(group, u)), 1 / first)
    units = some_units(group, seed)
    pairs = _complex(units)
    factors = first.reshape(group.instances, -1, 1)
    written = PLANE.apply(group, u, units, 1)
    close(_complex(written), factors * pairs)
    read = PLANE.apply(group, u, units, -1)
    close(_complex(read), pairs / factors.conj())


def test_rotary_scores_stay() -> None:
    """``⟨R(s) q, R(t) k⟩`` for turns by angles that depend on the position."""
    group = inside("plane", 4)
    (element,) = drawn(PLANE, group, 1, 3)
    queries, keys = some_units(group, 0, 5), some_units(group, 1, 5)

    def turned(units: torch.Tensor) -> torch.Tensor:
        angles = torch.outer(
            torch.tensor([1.0, 0.1]), torch.arange(5.0)
        ).double()
        return _complex(units)[0] * torch.polar(
            torch.ones_like(angles), angles
        )

    def scores(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return (turned(q).mT @ turned(k).conj()).real

    written = PLANE.apply(group, element, queries, 1)
    read = PLANE.apply(group, element, keys, -1)
    torch.testing.assert_close(scores(written, read), scores(queries, keys))


@given(groups, st.floats(-1e4, 1e4))
@settings(deadline=None, max_examples=25)
def test_learned_factors_are_elements(group: Group, height: float) -> None:
    latent = PLANE.latent(group)
    assert latent is not None
    assert torch.equal(
        PLANE.from_latent(group, latent).double(), PLANE.identity(group)
    )
    learned = PLANE.from_latent(group, latent + height)
    PLANE.check(group, learned)
    lengths = learned.norm(dim=-1)
    assert 0.0099 < float(lengths.min()) <= float(lengths.max()) < 101


@given(groups, seeds)
@settings(deadline=None, max_examples=25)
def test_balanced_pairs_are_as_long_where_they_are_read(
    group: Group, seed: int
) -> None:
    writers, readers = some_units(group, seed), some_units(group, seed + 1)
    u = PLANE.balance(group, writers @ writers.mT, readers @ readers.mT)
    written = _complex(PLANE.apply(group, u, writers, 1)).norm(dim=-1)
    read = _complex(PLANE.apply(group, u, readers, -1)).norm(dim=-1)
    torch.testing.assert_close(written, read, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "bad",
    [
        torch.ones(4),
        torch.zeros(2, 2),
        torch.full((2, 2), torch.nan),
        torch.full((2, 2), LARGEST),
        torch.full((2, 2), 0.5 / LARGEST),
        torch.ones(2, 2, dtype=torch.bool),
        torch.ones(2, 2, dtype=torch.complex64),
        [[1.0, 0.0], [1.0, 0.0]],
    ],
)
def test_what_is_no_factor_is_refused(bad: torch.Tensor) -> None:
    with pytest.raises(
        TransformError, match=r"group 'inner': factors must be"
    ):
        PLANE.check(inside("plane", 4), bad)


def _complex(units: torch.Tensor) -> torch.Tensor:
    """Pairs of units as complex numbers ``(instances, pairs, rest)``."""
    return torch.complex(units[:, 0::2], units[:, 1::2])


def test_integers_are_numbers_too() -> None:
    whole = torch.tensor([[0, 1], [1, 0]])
    found = PLANE.check(inside("plane", 4), whole)
    assert found.dtype == torch.float64
    assert torch.equal(found, whole.double())
