"""The numbers of a MergeModule: which are refused, and where λ is drawn."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import hypothesis.strategies as st
import pytest
from helpers.merging import State, make
from hypothesis import given

from lightning_rebasin.errors import ConfigurationError
from lightning_rebasin.modules.options import MergeOptions


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lam": 0.0}, "lam=0.0"),
        ({"lam": (0.6, 0.4)}, r"lam=\(0.6, 0.4\)"),
        ({"stands_for": "both"}, "stands_for='both'"),
        ({"projection": "cosine"}, "projection='cosine'"),
        ({"project_every": 0}, "project_every=0"),
    ],
)
def test_options_that_cannot_work_are_named(
    ends: tuple[State, State], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make(ends, **options)


@pytest.mark.parametrize(
    "lam",
    [0.0, 1.0, -0.1, 1.5, math.nan, (0.5, 0.4), (-0.1, 0.5), (0.5, 1.1)],
)
def test_lam_outside_of_the_segment_is_refused(lam: Any) -> None:
    with pytest.raises(
        ConfigurationError, match=r"must be a number inside \(0, 1\)"
    ):
        MergeOptions(lam=lam)


@pytest.mark.parametrize(
    ("lam", "interval", "middle"),
    [
        (0.25, (0.25, 0.25), 0.25),
        ((0.0, 1.0), (0.0, 1.0), 0.5),
        ((0.5, 1.0), (0.5, 1.0), 0.75),
        ((0.3, 0.3), (0.3, 0.3), 0.3),
    ],
)
def test_candidates_are_scored_in_the_middle(
    lam: Any, interval: tuple[float, float], middle: float
) -> None:
    options = MergeOptions(lam=lam)
    assert options.interval == interval
    assert options.score_lam == pytest.approx(middle)


@pytest.mark.parametrize("name", ["project_every", "batch_norm_batches"])
@pytest.mark.parametrize("value", [0, -3])
def test_counts_must_be_positive(name: str, value: int) -> None:
    message = f"{name}={value} must be at least 1"
    changes: dict[str, Any] = {name: value}
    with pytest.raises(ConfigurationError, match=message):
        MergeOptions(**changes)
    changes[name] = 1
    assert getattr(MergeOptions(**changes), name) == 1


steps = st.integers(0, 10**6)


@given(steps, steps, steps)
def test_lam_is_drawn_inside_its_interval_and_again_the_same(
    seed: int, step: int, batch_idx: int
) -> None:
    drawn = []
    for _ in range(2):
        options = MergeOptions(lam=(0.2, 0.7), seed=seed)
        drawn.append(options.draw_lam(step, batch_idx))
    assert 0.2 <= drawn[0] < 0.7
    assert drawn[0] == drawn[1]
    fixed = MergeOptions(lam=0.3, seed=seed)
    assert fixed.draw_lam(step, batch_idx) == 0.3


def test_every_step_batch_and_seed_draws_another_lam() -> None:
    drawn = set()
    for seed in range(4):
        options = MergeOptions(lam=(0.0, 1.0), seed=seed)
        for step in range(5):
            for batch_idx in range(6):
                drawn.add(options.draw_lam(step, batch_idx))
    assert len(drawn) == 4 * 5 * 6
    # Uniform on [0, 1]: the mean of 120 has a standard deviation of 0.026.
    assert sum(drawn) / len(drawn) == pytest.approx(0.5, abs=0.1)


def test_options_do_not_change_after_they_were_checked() -> None:
    options = MergeOptions()
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.lam = 7.0  # type: ignore[misc]
