"""The hand-written architectures of the shared zoo: exact, at or above the known floor, with a control that moves.

The others need torchvision, timm and transformers: ``tests/symmetry/zoo_table.py`` runs them all, and its result is
kept in ``docs/zoo.md``.
"""

import pytest
from helpers import zoo

CORE = zoo.names("core")


@pytest.mark.skipif(
    not CORE, reason="needs the shared zoo (set REBASIN_SHARED)"
)
def test_the_core_set_is_complete():
    assert len(CORE) == 23


@pytest.mark.parametrize(
    "name",
    CORE
    or [
        pytest.param("", marks=pytest.mark.skip(reason="needs the shared zoo"))
    ],
)
def test_core_architecture(name):
    row = zoo.judge(name)
    assert row.error < 1e-8, row
    assert row.log10 >= row.floor - 0.5, row
    assert row.control > 1e-6, row
