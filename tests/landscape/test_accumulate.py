"""Averages against plain Python sums."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_rebasin.errors import ConfigurationError
from lightning_rebasin.landscape.accumulate import Average, reduction_name

VALUES = st.lists(
    st.tuples(st.floats(-100, 100), st.integers(1, 50)), min_size=1, max_size=8
)


def reference(reduction, pairs):
    values = [value for value, _ in pairs]
    if reduction == "mean":
        return math.fsum(v * w for v, w in pairs) / sum(w for _, w in pairs)
    return {"sum": math.fsum, "min": min, "max": max}[reduction](values)


@given(
    VALUES, st.sampled_from(["mean", "sum", "min", "max"]), st.integers(1, 3)
)
def test_one_process_or_several_give_the_plain_result(
    pairs, reduction, processes
):
    parts = [Average(reduction) for _ in range(processes)]
    for i, (value, weight) in enumerate(pairs):
        number = torch.tensor(value, dtype=torch.float64) if i % 2 else value
        parts[i % processes].update(number, weight)
    started = [part.state() for part in parts if part.state()[2]]
    merged = Average.merge(started)
    assert merged.value == pytest.approx(
        reference(reduction, pairs), rel=1e-12, abs=1e-9
    )


def test_nothing_is_nan():
    assert math.isnan(Average("mean").value)


def test_float32_values_are_summed_in_float64():
    average = Average("mean")
    for _ in range(10_000):
        average.update(torch.tensor(0.1, dtype=torch.float32), 1)
    assert average.value == pytest.approx(float(torch.tensor(0.1)), rel=1e-12)


def test_names_of_reductions():
    assert [
        reduction_name(f) for f in ("MEAN", "avg", torch.sum, min, torch.max)
    ] == [
        "mean",
        "mean",
        "sum",
        "min",
        "max",
    ]
    with pytest.raises(ConfigurationError, match="reduce_fx"):
        reduction_name(torch.median)
