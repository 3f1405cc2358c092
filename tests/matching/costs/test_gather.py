"""Differences of gathered parts, against NumPy's own indexing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lightning_rebasin.matching.costs.gather import gather_differences


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("rows", "parts", "rest"), [(5, 7, 9), (3, 4, 1), (1, 1, 2)]
)
def test_parts_after_less_parts_before(
    dtype: type[Any], rows: int, parts: int, rest: int
) -> None:
    rng = np.random.default_rng(0)
    block = rng.standard_normal((rows, parts, rest)).astype(dtype)
    after = rng.integers(parts, size=2 * parts)
    before = rng.integers(parts, size=2 * parts)
    out = np.full((rows, 2 * parts, rest), np.nan, dtype)
    gather_differences(out, block, after, before)
    np.testing.assert_array_equal(out, block[:, after] - block[:, before])


def test_no_parts_and_parts_that_stay() -> None:
    block = np.random.default_rng(0).standard_normal((3, 4, 2))
    none = np.empty(0, np.int64)
    gather_differences(np.empty((3, 0, 2)), block, none, none)
    out = np.full((3, 4, 2), np.nan)
    everything = np.arange(4)
    gather_differences(out, block, everything, everything)
    np.testing.assert_array_equal(out, np.zeros((3, 4, 2)))
