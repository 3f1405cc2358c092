"""Paths as values: lengths, files, pictures."""

from __future__ import annotations

import csv
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_rebasin.errors import ConfigurationError, DataError, OutputError
from lightning_rebasin.inputs import InputPath, InputPaths
from lightning_rebasin.inputs.paths import corner_marks


def path(losses=(0.1, 2.0, 0.3), corners=((0.0, 0.0), (3.0, 4.0))):
    lambdas = tuple(i / (len(losses) - 1) for i in range(len(losses)))
    return InputPath(torch.tensor(corners), lambdas, losses)


@settings(deadline=None, max_examples=50)
@given(
    seed=st.integers(0, 10**6),
    pieces=st.integers(1, 5),
    lam=st.floats(0, 1),
)
def test_lambda_is_a_fraction_of_the_length(seed, pieces, lam):
    generator = torch.Generator().manual_seed(seed)
    corners = torch.randn(pieces + 1, 3, generator=generator).double()
    own = InputPath(corners, (0.0, 1.0), (0.0, 0.0))
    lengths = (corners[1:] - corners[:-1]).norm(dim=1)
    found = own.input_at(lam)
    # Walk the way as far as λ says, piece by piece.
    left = lam * float(lengths.sum())
    for k, length in enumerate(lengths.tolist()):
        if left <= length or k == pieces - 1:
            expected = corners[k] + min(left / length, 1.0) * (
                corners[k + 1] - corners[k]
            )
            break
        left -= length
    assert torch.allclose(found, expected, atol=1e-9)
    straight = float((corners[-1] - corners[0]).norm())
    assert own.length == pytest.approx(float(lengths.sum()) / straight)


def test_the_ends_of_a_path_are_its_corners():
    corners = torch.randn(4, 2)
    own = InputPath(corners, (0.0, 1.0), (0.0, 0.0))
    assert torch.equal(own.input_at(0.0), corners[0])
    assert torch.equal(own.input_at(1.0), corners[-1])
    with pytest.raises(ConfigurationError, match=r"λ = 1\.1"):
        own.input_at(1.1)


def test_two_ends_at_one_place_are_a_path():
    corners = torch.ones(3, 2)
    assert corner_marks(corners) == [0.0, 0.5, 1.0]
    own = InputPath(corners, (0.0, 0.5, 1.0), (1.0, 1.0, 1.0))
    assert own.length == 1.0
    assert torch.equal(own.input_at(0.3), corners[0])


def test_heights_are_those_of_a_barrier_curve():
    own = InputPaths((path(), path((1.0, 1.0, 2.0))), threshold=0.5)
    assert own.heights() == pytest.approx((1.8, 0.5))
    assert own.heights("chord") == pytest.approx((1.8, 0.0))
    assert own.maxima == (2.0, 2.0)
    assert own.connected() == (False, False)
    assert own.connected(2.0) == (True, True)
    assert len(own) == 2
    assert own[1].pieces == 1
    assert [p.maximum for p in own] == [2.0, 2.0]


def test_a_broken_loss_is_not_flat():
    own = path((0.0, math.nan, 0.0))
    assert math.isnan(own.maximum)
    assert InputPaths((own,), 9.0).connected() == (False,)


def test_json_and_csv_hold_everything(tmp_path):
    own = InputPaths(
        (path(), path((0.25, 0.5), ((0.0, 1.0), (1.0, 1.0), (1.0, 0.0)))),
        threshold=0.5,
    )
    own.to_json(tmp_path / "paths.json")
    again = InputPaths.from_json(tmp_path / "paths.json")
    assert again.threshold == 0.5
    for one, other in zip(own, again, strict=True):
        assert torch.equal(one.corners, other.corners)
        assert (one.lambdas, one.losses) == (other.lambdas, other.losses)
    own.to_csv(tmp_path / "paths.csv")
    with (tmp_path / "paths.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["pair"] for row in rows] == ["0", "0", "0", "1", "1"]
    assert [float(row["loss"]) for row in rows] == [0.1, 2.0, 0.3, 0.25, 0.5]
    assert InputPaths.from_dict(InputPaths(()).to_dict()).threshold == math.inf


def test_what_is_no_path_is_refused(tmp_path):
    with pytest.raises(DataError, match="two corners"):
        InputPath(torch.ones(1, 2), (0.0, 1.0), (0.0, 0.0))
    with pytest.raises(DataError, match="ascending"):
        InputPath(torch.ones(2, 2), (0.0, 0.5), (0.0, 0.0))
    with pytest.raises(DataError, match="2 values for 3"):
        InputPath(torch.ones(2, 2), (0.0, 0.5, 1.0), (0.0, 0.0))
    with pytest.raises(DataError, match="cannot read"):
        InputPaths.from_json(tmp_path / "none.json")
    with pytest.raises(DataError, match="not paths"):
        InputPaths.from_dict({"format": "other"})
    with pytest.raises(DataError, match="malformed"):
        InputPaths.from_dict({**InputPaths(()).to_dict(), "paths": [{}]})
    with pytest.raises(OutputError):
        InputPaths(()).to_json(tmp_path / "no" / "x.json")


def test_the_text_says_what_was_found():
    own = InputPaths((path(), path((0.1, 0.2, 0.3))), threshold=0.5)
    assert repr(own) == (
        "InputPaths(2 pairs; highest loss 1.15 in the mean, 2 at worst; 1 connected below 0.5)"
    )
    assert repr(InputPaths(())) == "InputPaths(no pairs)"


def test_losses_come_back_as_numbers():
    own = path(np.float32([0.5, 1.5, 0.25]))
    assert own.losses == (0.5, 1.5, 0.25)
    assert all(type(loss) is float for loss in own.losses)
