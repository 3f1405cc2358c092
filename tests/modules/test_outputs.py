"""The distance of outputs, which needs no labels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_rebasin.errors import ConfigurationError
from lightning_rebasin.modules.outputs import (
    distance,
    evaluating,
    mixed_outputs,
    outputs_at,
)


def test_the_distance_is_relative_to_the_spread() -> None:
    """By hand: wanted 0, 2, 4 has the spread 8 around its mean; off by 1 three times is 3."""
    wanted = torch.tensor([[0.0], [2.0], [4.0]])
    assert distance([wanted + 1], [wanted]).item() == pytest.approx(3 / 8)
    assert distance([7 * wanted + 7], [7 * wanted]).item() == pytest.approx(
        3 / 8
    )
    assert distance([wanted], [wanted]).item() == 0


def test_constant_answers_are_measured_by_their_size() -> None:
    wanted = torch.full((3, 1), 2.0)
    assert distance([wanted + 1], [wanted]).item() == pytest.approx(3 / 12)
    assert distance([torch.zeros(2, 1)], [torch.zeros(2, 1)]).item() == 0


def test_the_mix_is_that_of_the_ends_in_eval_mode() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5)).train()
    a = {"0.weight": torch.randn(2, 3), "0.bias": torch.zeros(2)}
    b = {name: 5 * tensor for name, tensor in a.items()}
    x = torch.randn(5, 3)
    # (1 − ¼)·1 + ¼·5 = 2
    (mix,) = mixed_outputs(net, (a, b), (x, None), 0.25)
    torch.testing.assert_close(mix, 2 * x @ a["0.weight"].T)
    assert not mix.requires_grad
    assert all(part.training for part in net.modules())


def test_every_part_gets_its_own_mode_back() -> None:
    net = nn.Sequential(nn.Linear(1, 1), nn.Dropout())
    net[1].eval()
    with evaluating(net):
        assert not any(part.training for part in net.modules())
    assert [part.training for part in net.modules()] == [True, True, False]


class Answers(nn.Module):
    """Returns a dict like many language models do, or nothing that could be compared."""

    def __init__(self, answers: dict[str, Any]) -> None:
        super().__init__()
        self.answers = answers

    def forward(self, x: Tensor) -> dict[str, Any]:
        return self.answers


def test_numbers_for_the_whole_batch_are_left_out() -> None:
    logits = torch.ones(2, 3)
    answers = {"loss": torch.tensor(1.0), "logits": logits, "ids": logits > 0}
    (found,) = outputs_at(Answers(answers), {}, torch.zeros(2, 1))
    assert found is logits
    with pytest.raises(ConfigurationError, match="no floating-point tensor"):
        outputs_at(Answers({"ids": logits > 0}), {}, torch.zeros(2, 1))
