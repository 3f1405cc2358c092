"""Held-out scores of merged networks, against their definition."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_rebasin.merging.refit.batches import Batches
from lightning_rebasin.merging.refit.choose import best, distances, losses
from lightning_rebasin.merging.refit.fitting import Ends


def linear(seed: int) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(3, 2).eval()


def ends_of(first: nn.Module, second: nn.Module, share: float) -> Ends:
    states = [first.state_dict(), second.state_dict()]
    return Ends(copy.deepcopy(first), states, [share, 1 - share])


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ({"naive": 2.0, "repair": 1.0, "refit": 1.5}, "repair"),
        ({"naive": 2.0, "repair": math.nan, "refit": math.inf}, "naive"),
        ({"naive": 1.0, "refit": 1.0}, "refit"),
        ({"naive": math.nan, "refit": math.nan}, "naive"),
    ],
)
def test_the_lowest_finite_score_wins_and_the_last_of_equals(
    scores: dict[str, float], expected: str
) -> None:
    assert best(scores) == expected


def test_the_distance_is_the_error_relative_to_the_spread() -> None:
    first, second, candidate = linear(0), linear(1), linear(2)
    x = torch.randn(40, 3)
    found = distances(
        {"naive": candidate},
        Batches(list(x.split(20))),
        ends_of(first, second, 0.25),
    )
    with torch.no_grad():
        wanted = 0.25 * first(x) + 0.75 * second(x)
        error = (candidate(x) - wanted).square().sum(1).mean()
        spread = wanted.var(0, correction=0).sum()
    assert found["naive"] == pytest.approx(float(error / spread), rel=1e-4)


def test_an_end_without_a_share_is_not_run() -> None:
    first, candidate = linear(0), linear(2)
    broken = {k: v * math.nan for k, v in first.state_dict().items()}
    ends = Ends(copy.deepcopy(first), [first.state_dict(), broken], [1.0, 0.0])
    found = distances({"a": candidate}, Batches([torch.randn(9, 3)]), ends)
    assert math.isfinite(found["a"])


class Constant(nn.Linear):
    """Returns its bias, but for rounding errors."""

    def forward(self, x: Tensor) -> Tensor:
        return self.bias + 1e-7 * x[:, :1]


def test_constant_outputs_are_compared_with_their_size() -> None:
    """Their spread is rounding error; a distance relative to it would be astronomical."""
    modules = [Constant(3, 2), Constant(3, 2)]
    for module, value in zip(modules, (1.0, 1.5), strict=True):
        nn.init.constant_(module.bias, value)
    ends = ends_of(modules[0], modules[0], 0.5)
    found = distances({"a": modules[1]}, Batches([torch.randn(40, 3)]), ends)
    assert found["a"] == pytest.approx(0.25, rel=1e-3)


def test_outputs_that_are_zero_have_a_finite_score() -> None:
    module = linear(0)
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    ends = ends_of(module, module, 0.5)
    found = distances({"a": module}, Batches([torch.randn(9, 3)]), ends)
    assert found["a"] == 0


def test_a_loss_is_averaged_over_samples_and_not_over_batches() -> None:
    module = linear(0)
    x = torch.randn(14, 3)

    def loss(network: nn.Module, batch: Any) -> Tensor:
        output: Tensor = network(batch)
        return output.square().mean()

    found = losses({"a": module}, Batches(list(x.split(10))), loss)
    with torch.no_grad():
        expected = float(module(x).square().mean())
    assert found["a"] == pytest.approx(expected, rel=1e-5)


def test_several_outputs_count_together_and_labels_do_not() -> None:
    class Several(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = linear(0), linear(1)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            one, two = self.one(x), self.two(x)
            return {"one": one, "two": two, "label": one.argmax(1)}

    end, candidate = Several(), Several()
    candidate.two = linear(3)
    x = torch.randn(40, 3)
    ends = ends_of(end, end, 0.5)
    found = distances({"a": candidate}, Batches([x]), ends)
    with torch.no_grad():
        wanted = torch.cat([end(x)["one"], end(x)["two"]], 1)
        own = torch.cat([candidate(x)["one"], candidate(x)["two"]], 1)
        spread = wanted.var(0, correction=0).sum()
        expected = (own - wanted).square().sum(1).mean() / spread
    assert found["a"] == pytest.approx(float(expected), rel=1e-4)
