"""Weights that do not fit a spec are refused, and the message names the tensor."""

from __future__ import annotations

import pytest
import torch

from lightning_rebasin import PermutationSpec
from lightning_rebasin.errors import NonFiniteError, StateDictError

SPEC = PermutationSpec.from_table({}, {f"w{i}": (i,) for i in range(6)})
STATE = {f"w{i}": torch.zeros(i) for i in range(6)}


def test_weights_that_fit_pass() -> None:
    SPEC.check_state(STATE)
    SPEC.check_state({**STATE, "w2": torch.tensor([0.0, float("nan")])})


def test_missing_and_extra_tensors_are_counted() -> None:
    with pytest.raises(
        StateDictError,
        match=r"a\.pt.*missing 'w0', 'w1', 'w2' \(\+3 more\); unexpected 'x';",
    ):
        SPEC.check_state({"x": torch.zeros(1)}, "a.pt")


def test_another_shape_is_named() -> None:
    with pytest.raises(StateDictError, match=r"'w3'.*\(1,\).*\(3,\)"):
        SPEC.check_state({**STATE, "w3": torch.zeros(1)})


@pytest.mark.parametrize("hole", ["nan", "inf"])
def test_holes_are_refused_when_asked(hole: str) -> None:
    holed = {**STATE, "w2": torch.tensor([0.0, float(hole)])}
    with pytest.raises(NonFiniteError, match=r"reference.*'w2'"):
        SPEC.check_state(holed, "reference", finite=True)
