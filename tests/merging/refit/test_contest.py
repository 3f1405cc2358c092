"""What a refit has to beat, and how it is judged."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from helpers.models import BatchNormCNN, mlp, randomise
from torch import Tensor, nn

from lightning_rebasin import average, repair, reset_batch_norm
from lightning_rebasin.merging.refit import Contest, contest


def images(samples: int = 64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(samples, 3, 8, 8, generator=generator)
    return list(x.split(32))


def ends() -> list[dict[str, Tensor]]:
    return [randomise(BatchNormCNN(), s).state_dict() for s in (1, 2)]


def outputs(module: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = module.eval()(x)
    return found


def loaded(state: dict[str, Tensor]) -> nn.Module:
    module = BatchNormCNN()
    module.load_state_dict(state)
    return module


def test_rivals_are_judged_by_distance_on_held_out_samples() -> None:
    states = ends()
    found = Contest(BatchNormCNN(), states, images(), shares=None, loss=None)
    # The last eighth of each batch of 32.
    fitted = [batch[:28] for batch in images()]
    held_out = torch.cat([batch[28:] for batch in images()])
    naive = loaded(average(states))
    rivals = {
        "naive": naive,
        "reset": reset_batch_norm(naive, fitted),
        "repair": repair(naive, states, fitted).module,
    }
    wanted = sum(outputs(loaded(state), held_out) / 2 for state in states)
    assert isinstance(wanted, Tensor)
    spread = wanted.var(0, correction=0).sum()
    for name, score in found.rival_scores().items():
        missing = outputs(rivals[name], held_out) - wanted
        distance = missing.square().sum(1).mean() / spread
        assert score == pytest.approx(float(distance), rel=1e-4)
        made = found.made(name)
        torch.testing.assert_close(
            outputs(made, held_out), outputs(rivals[name], held_out)
        )
    assert found.samples() == (56, 8)
    assert found.criterion == "distance"


def test_rivals_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return repair(*args, **kwargs)

    monkeypatch.setattr(contest, "repair", counted)
    found = Contest(BatchNormCNN(), ends(), images(), shares=None, loss=None)
    first = found.rival_scores()
    both = found.scores_with(copy.deepcopy(found.naive))
    assert len(calls) == 1
    assert both == {**first, "refit": first["naive"]}


def test_a_loss_judges_if_there_is_one() -> None:
    net = mlp(5, 8, 3)
    state = net.state_dict()
    x = [torch.randn(16, 5)]

    def loss(module: nn.Module, batch: Tensor) -> float:
        return float(len(batch))

    found = Contest(net, [state, state], x, shares=None, loss=loss)
    assert found.criterion == "loss"
    assert found.rival_scores() == {"naive": 2.0, "repair": 2.0}


def test_samples_that_cannot_be_split_judge_themselves() -> None:
    net = mlp(5, 8, 3)
    state = net.state_dict()
    alone = [torch.randn(1, 5)]
    found = Contest(net, [state, state], alone, shares=None, loss=None)
    assert found.samples() == (1, 1)
