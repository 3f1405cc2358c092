"""Reasons, collected and said once."""

from __future__ import annotations

from lightning_rebasin.merging.refit.fitted import LeftLayer
from lightning_rebasin.merging.refit.leftovers import Reasons


def test_each_name_comes_once_with_all_its_reasons_in_order() -> None:
    reasons = Reasons()
    reasons.add("b", "it is used twice")
    reasons.add("a", "it is a buffer")
    reasons.add("b", "it is a table")
    reasons.add("b", "it is used twice")
    assert reasons.left() == (
        LeftLayer("b", "it is used twice; it is a table"),
        LeftLayer("a", "it is a buffer"),
    )


def test_nothing_is_left_at_first() -> None:
    assert Reasons().left() == ()
