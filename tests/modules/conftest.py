"""Fixtures of the tests of MergeModule and its parts."""

from __future__ import annotations

import pytest
from helpers.classifier import Classifier
from helpers.merging import State, trained


@pytest.fixture(scope="module")
def ends() -> tuple[State, State]:
    model = Classifier(hidden=16)
    return trained(model, 1), trained(model, 2)
