"""The attacks of the study of inputs: they stay where they may go, and reach what they are after."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.fixture
def attacks(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import inputs_attacks

    yield inputs_attacks
    sys.modules.pop("inputs_attacks", None)


class Brightness(nn.Module):
    """Class 1 for images brighter than ½ in the mean, class 0 for darker ones."""

    def forward(self, x):
        away = 40 * (x.flatten(1).mean(1) - 0.5)
        return torch.stack([-away, away], 1)


DARK = torch.full((3, 1, 4, 4), 0.45)
ONES, ZEROS = torch.ones(3).long(), torch.zeros(3).long()


def test_one_step_of_the_sign_fills_the_radius(attacks):
    moved = attacks.fgsm(Brightness(), DARK, ZEROS, 0.1)
    assert torch.allclose(moved, DARK + 0.1)


def test_projected_descent_stays_in_its_cube_and_in_the_range(attacks):
    module = Brightness()
    moved = attacks.pgd(
        lambda x: attacks.losses(module, x, ONES), DARK, 0.1, steps=7
    )
    assert torch.allclose(moved, DARK + 0.1)
    wide = attacks.pgd(
        lambda x: attacks.losses(module, x, ONES), DARK, 9.0, steps=7
    )
    assert torch.equal(wide, torch.ones_like(DARK))


def test_the_published_end_stops_below_its_goal(attacks):
    goals = torch.tensor([0.6, 0.3, 0.01])
    moved = attacks.adam_until(Brightness(), DARK, ONES, goals)
    losses = attacks.losses(Brightness(), moved, ONES)
    assert bool((losses < goals).all())
    # One step of Adam moves every pixel by .005, so none is far below.
    back = attacks.losses(Brightness(), moved - 0.006, ONES)
    assert bool((back > goals).all())


def test_the_nearest_image_is_at_the_boundary(attacks):
    moved = attacks.carlini_wagner(Brightness(), DARK, ONES, weight=0.05)
    assert Brightness()(moved).argmax(1).tolist() == [1, 1, 1]
    # The boundary is .05 away in every pixel.
    assert float((moved - DARK).abs().max()) < 0.08


def test_who_knows_the_detector_looks_at_the_way(attacks):
    references = torch.full((3, 2, 1, 4, 4), 0.9)
    references[:, 1] = 0.7
    objective = attacks.knowing_the_detector(Brightness(), ONES, references, 2)
    for place in (0.9, 0.7, 0.9):
        expected = 0.0
        for lam in (0.5, 1.0):
            way = (1 - lam) * place + lam * DARK
            expected += attacks.losses(Brightness(), way, ONES) / 2
        assert torch.allclose(objective(DARK), expected)
