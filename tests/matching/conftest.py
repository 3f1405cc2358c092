"""A pair of small perceptrons."""

from __future__ import annotations

import pytest
from helpers.planted import chain
from torch import Tensor

from lightning_rebasin.symmetry.spec.spec import PermutationSpec

Pair = tuple[PermutationSpec, dict[str, Tensor], dict[str, Tensor]]


@pytest.fixture
def pair() -> Pair:
    table, a, b = chain((10, 20, 15, 5), 0)
    return PermutationSpec.from_table(table, a), a, b
