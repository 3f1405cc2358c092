"""Which steps are due."""

from __future__ import annotations

import pytest

from lightning_rebasin.callbacks.schedule import (
    StepSchedule,
    positive,
    steps_from,
)
from lightning_rebasin.errors import ConfigurationError


def test_logarithmic_steps_are_evenly_spaced():
    schedule = StepSchedule(per_decade=2)
    due = [step for step in range(1001) if schedule.due(step - 1, step)]
    assert due == [0, 1, 3, 10, 32, 100, 316, 1000]


def test_steps_that_are_jumped_over_are_not_lost():
    assert StepSchedule(listed=(7,)).due(6, 8)
    assert StepSchedule(every=5).due(4, 6)
    assert not StepSchedule(every=5).due(5, 9)


def test_listed_and_regular_steps_are_due_together():
    schedule = StepSchedule(listed=(3,), every=4)
    assert [s for s in range(9) if schedule.due(s - 1, s)] == [0, 3, 4, 8]


def test_options_are_read_or_refused_by_name():
    assert steps_from("at_steps", [7, 2, 2]) == (2, 7)
    assert steps_from("at_steps", None) == ()
    assert positive("limit", None) is None
    assert positive("limit", 3) == 3
    with pytest.raises(ConfigurationError, match="at_steps: step -1"):
        steps_from("at_steps", [-1])
    with pytest.raises(ConfigurationError, match="limit=0"):
        positive("limit", 0)
