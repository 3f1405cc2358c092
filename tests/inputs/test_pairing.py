"""Pairs within classes: no input twice, the classes in turn."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_rebasin.errors import DataError
from lightning_rebasin.inputs.pairing import within_classes


@given(
    classes=st.lists(st.integers(0, 4), min_size=1, max_size=40),
    count=st.integers(1, 30),
)
def test_pairs_share_their_class_and_no_input_is_used_twice(classes, count):
    possible = sum(classes.count(label) // 2 for label in range(5))
    if not possible:
        with pytest.raises(DataError, match="no class has two"):
            within_classes(torch.tensor(classes), count)
        return
    a, b = within_classes(torch.tensor(classes), count)
    assert len(a) == len(b) == min(possible, count)
    assert len({*a, *b}) == 2 * len(a)
    assert [classes[i] for i in a] == [classes[i] for i in b]
    # Of classes that have enough inputs none gets a second pair before all have a first one.
    chosen = [classes[i] for i in a]
    for label in set(chosen):
        for other in range(5):
            enough = classes.count(other) // 2 > chosen.count(other)
            assert not (
                enough and chosen.count(label) > chosen.count(other) + 1
            )


def test_wrong_labels_are_refused():
    with pytest.raises(DataError, match=r"shape \(2, 3\)"):
        within_classes(torch.zeros(2, 3, dtype=torch.long), 1)
    with pytest.raises(DataError, match=r"float32"):
        within_classes(torch.zeros(4), 1)
