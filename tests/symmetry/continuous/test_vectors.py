"""What a walk knows: writers and readers, roles that are tied, and when only a rotation is left."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lightning_rebasin.symmetry import AxisMap, Component, Group
from lightning_rebasin.symmetry.continuous.carrying import Seat
from lightning_rebasin.symmetry.continuous.operations import Limit
from lightning_rebasin.symmetry.continuous.vectors import Vectors

PACKED = AxisMap(
    "qk", ((4,),), (Component("g", (0,), torch.tensor([[0, 2], [1, 3]])),)
)


def step(**tensors: str) -> Any:
    """A step whose values are tensors of the state."""
    values = [
        SimpleNamespace(origin="state", name=name) for name in tensors.values()
    ]
    return SimpleNamespace(
        value=lambda number: values[number],
        seat=lambda _number: Seat(frozenset({0})),
        number=0,
        name="here",
        results=(),
    )


def test_writers_and_readers_have_opposite_powers():
    vectors = Vectors(Group("g", 2), {})
    here = step(a="w", b="r")
    writer, reader = vectors.of(here, 0), vectors.of(here, 1)
    vectors.tie(here, writer.roles, reader.roles, -1)
    assert vectors.powers() == {"w": (1,), "r": (-1,)}
    assert not vectors.rotates


def test_what_reads_itself_is_a_rotation():
    vectors = Vectors(Group("g", 2), {})
    here = step(a="w")
    writer = vectors.of(here, 0)
    vectors.tie(here, writer.roles, writer.roles, -1)
    assert "here" in vectors.rotates


def test_the_copies_of_a_packed_weight_have_powers_of_their_own():
    vectors = Vectors(Group("g", 2), {"qk": PACKED})
    here = step(a="qk")
    roles = vectors.of(here, 0).roles
    assert isinstance(roles, torch.Tensor)
    vectors.tie(here, roles[:2], roles[2:], -1)
    assert vectors.powers() == {"qk": (1, -1)}
    assert not vectors.rotates


def test_places_that_do_not_fit_end_the_walk():
    vectors = Vectors(Group("g", 2), {})
    with pytest.raises(Limit, match="here"):
        vectors.tie(step(), torch.tensor([0, 1, 2]), torch.tensor([0, 1]), 1)
