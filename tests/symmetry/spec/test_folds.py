"""Folds and centres as values."""

from __future__ import annotations

import dataclasses

import pytest

from lightning_rebasin.symmetry.spec.folds import Centre, Fold, Reader

WITH, WITHOUT = Reader("w", 1, "b"), Reader("v", 0)


@pytest.mark.parametrize(
    ("readers", "absorbs"),
    [
        ((WITH,), True),
        ((WITHOUT,), False),
        ((WITH, WITHOUT), False),
        ((WITH, Reader("u", 1, "c")), True),
    ],
)
def test_a_shift_is_absorbed_if_every_reader_has_a_bias(
    readers: tuple[Reader, ...], absorbs: bool
) -> None:
    assert Fold("gain", "shift", readers).absorbs_shift is absorbs


def test_they_are_values() -> None:
    assert Fold("g", None, (WITH,)) == Fold("g", None, (Reader("w", 1, "b"),))
    assert Centre((("w", 0),)) == Centre((("w", 0),))
    assert len({WITH, Reader("w", 1, "b"), WITHOUT}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        WITH.dim = 0  # type: ignore[misc]  # what must fail
