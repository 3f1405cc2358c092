"""The choices of matching, and which of them go together."""

from __future__ import annotations

import pytest

from lightning_rebasin.callbacks.matching import (
    check_choices,
    has_naive_curve,
    methods_of,
)
from lightning_rebasin.errors import ConfigurationError


def test_what_each_choice_measures():
    assert [c for c in ("none", "weight", "both") if has_naive_curve(c)] == [
        "none",
        "both",
    ]
    assert methods_of("none") == ()
    assert methods_of("auto") == ("weight", "activation", "correlation")


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        (("weights", "mean", None), "matching='weights'; choose one of"),
        (("weight", "worst", None), "convention='worst'"),
        (("weight", "mean", -1), "batch_norm_batches=-1"),
        (("activation", "mean", 0), "keeps no training batch"),
    ],
)
def test_what_cannot_work_is_named(choices, message):
    with pytest.raises(ConfigurationError, match=message):
        check_choices(*choices)


def test_weights_need_no_batches():
    check_choices("both", "chord", 0)
