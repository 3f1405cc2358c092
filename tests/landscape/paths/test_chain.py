"""A chain passes every joint, each piece in its share of t."""

import pytest
import torch

from lightning_rebasin.errors import ConfigurationError
from lightning_rebasin.landscape.paths import Bezier, Chain, Line

A, B, C = ({"w": torch.full((1,), value)} for value in (0.0, 3.0, 9.0))
BEND = {"w": torch.full((1,), 5.0)}


def test_joints_are_exact_and_pieces_share_t():
    chain = Chain((Line(A, B), Bezier((B, BEND, C))))
    assert chain.at(0.0).anchor is A
    assert chain.at(0.5).anchor is B
    assert chain.at(1.0).anchor is C
    assert chain.at(0.25).coefficients == (0.5, 0.5)
    assert chain.at(0.75).coefficients == (0.25, 0.5, 0.25)
    assert chain.at(0.75).state()["w"].tolist() == [5.5]


def test_no_piece_is_an_error():
    with pytest.raises(ConfigurationError, match="one piece"):
        Chain(())
