"""What a match result reports."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from lightning_rebasin.matching import Descent, MatchResult, match_weights
from lightning_rebasin.symmetry.actions.permutation import Permutation
from lightning_rebasin.symmetry.spec.spec import PermutationSpec

Pair = tuple[PermutationSpec, dict[str, Tensor], dict[str, Tensor]]


def test_numbers_are_consistent(pair: Pair) -> None:
    spec, a, b = pair
    result = match_weights(spec, a, b, restarts=4)
    assert result.gain == result.objective - result.identity_objective > 0
    assert [d.objective for d in result.descents] == [
        d.objectives[-1] for d in result.descents
    ]
    assert result.spread == max(d.objective for d in result.descents) - min(
        d.objective for d in result.descents
    )
    assert result.converged
    assert all(d.sweeps == len(d.objectives) - 1 >= 1 for d in result.descents)
    norm = sum(float(t.double().square().sum()) for t in a.values()) ** 0.5
    assert result.norms[0] == pytest.approx(norm)
    assert -1 <= result.cosine <= 1
    assert 0 <= result.moved_fraction <= 1
    moved = sum(
        int(
            (
                result.permutation[g]
                != torch.arange(len(result.permutation[g]))
            ).sum()
        )
        for g in spec.groups
    )
    assert result.moved_fraction == pytest.approx(moved / 35)


def test_report_and_dict_name_every_group(pair: Pair) -> None:
    spec, a, b = pair
    result = match_weights(spec, a, b)
    text, data = result.report(), json.loads(json.dumps(result.to_dict()))
    for group in spec.groups:
        assert group in text
        assert data["groups"][group]["size"] == spec.groups[group].size
    assert len(data["descents"]) == len(result.descents) == 3
    assert "objective" in repr(result)
    assert "sweeps" in repr(result.state)


def test_result_is_frozen(pair: Pair) -> None:
    result = match_weights(*pair)
    with pytest.raises(AttributeError):
        result.objective = 0.0  # type: ignore[misc]


def made_by_hand() -> MatchResult:
    """Two groups of 2 and 3 units, one of them turned; two descents, of which the worse did not end."""
    spec = PermutationSpec.from_table({"w": ("h", "k")}, {"w": (2, 3)})
    return MatchResult(
        transform=Permutation(spec, {"h": torch.tensor([1, 0])}),
        objective=12.0,
        identity_objective=8.0,
        descents=(
            Descent("first", (8, 11, 12, 12), converged=True, seconds=0.5),
            Descent("second", (7, 9), converged=False, seconds=0.25),
        ),
        norms=(4.0, 5.0),
    )


def test_numbers_of_a_result_made_by_hand() -> None:
    result = made_by_hand()
    assert (result.gain, result.spread, result.cosine) == (4.0, 3.0, 0.6)
    assert result.moved == {"h": 1.0, "k": 0.0}
    assert result.moved_fraction == 2 / 5
    assert [d.sweeps for d in result.descents] == [3, 1]
    # The descent that ended lower does not count.
    assert result.converged
    assert (
        "2 descents, spread 3; best from first; 1 of them" in result.report()
    )
    assert result.to_dict()["gain"] == 4.0


def test_nothing_to_match_has_no_cosine_and_no_spread() -> None:
    spec = PermutationSpec.from_table({}, {})
    result = MatchResult(Permutation.identity(spec), 0.0, 0.0)
    assert (result.cosine, result.spread, result.moved_fraction) == (0, 0, 0)
    assert result.converged
