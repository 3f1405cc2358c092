"""AUROC and rates by counting, and as torchmetrics counts them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.classification import binary_auroc

from lightning_rebasin.errors import DataError
from lightning_rebasin.inputs.rates import auroc, true_positive_rate

SCORES = st.lists(st.integers(0, 6), min_size=1, max_size=12)


@settings(deadline=None, max_examples=100)
@given(low=SCORES, high=SCORES)
def test_auroc_counts_pairs(low, high):
    scores = torch.tensor([*low, *high]).float()
    truth = torch.tensor([False] * len(low) + [True] * len(high))
    wins = sum((h > n) + 0.5 * (h == n) for h in high for n in low)
    assert auroc(scores, truth) == pytest.approx(wins / len(low) / len(high))
    theirs = binary_auroc(scores / 10, truth.long())
    assert auroc(scores, truth) == pytest.approx(float(theirs), abs=1e-6)
    # Only the order counts, however large the losses.
    assert auroc(1e6 * scores + 50, truth) == auroc(scores, truth)


@settings(deadline=None, max_examples=100)
@given(low=SCORES, high=SCORES, rate=st.sampled_from([0.0, 0.1, 0.5, 1.0]))
def test_the_rate_is_the_best_of_all_thresholds(low, high, rate):
    scores = torch.tensor([*low, *high]).float()
    truth = torch.tensor([False] * len(low) + [True] * len(high))
    best = 0.0
    for limit in (-1, *range(7)):
        alarms = sum(n > limit for n in low) / len(low)
        if alarms <= rate:
            best = max(best, sum(h > limit for h in high) / len(high))
    assert true_positive_rate(scores, truth, rate) == pytest.approx(best)


def test_five_of_a_hundred_are_five():
    truth = torch.arange(200) >= 100
    scores = torch.cat([torch.arange(100.0), torch.full((100,), 94.5)])
    assert true_positive_rate(scores, truth, 0.05) == 1.0
    assert true_positive_rate(scores, truth, 0.049) == 0.0


def test_one_kind_alone_has_no_rate():
    for truth in (torch.ones(2), torch.zeros(2)):
        with pytest.raises(DataError, match="adversarial and real"):
            auroc(torch.zeros(2), truth)
    with pytest.raises(DataError, match="NaN"):
        auroc(torch.tensor([0.0, torch.nan]), torch.tensor([0, 1]))
