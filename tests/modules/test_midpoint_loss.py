"""What is minimised between the ends: the user's loss, or the distance of outputs."""

from __future__ import annotations

import pytest
import torch
from helpers.classifier import FEATURES, Classifier
from helpers.merging import State, train_data

from lightning_rebasin.errors import ConfigurationError
from lightning_rebasin.modules.endpoints import Endpoints
from lightning_rebasin.modules.inner import InnerModel
from lightning_rebasin.modules.midpoint_loss import MidpointLoss, inner_loss


def loss_between(
    ends: tuple[State, State], *, without_labels: bool
) -> MidpointLoss:
    choice = "outputs" if without_labels else None
    inner = InnerModel(Classifier(hidden=16), inner_loss(choice))
    endpoints = Endpoints(inner.model, *ends)
    return MidpointLoss(inner, endpoints, without_labels=without_labels)


def test_labels_do_not_matter_without_labels(
    ends: tuple[State, State],
) -> None:
    x, y = next(iter(train_data(shuffle=False)))
    for without_labels in (True, False):
        loss = loss_between(ends, without_labels=without_labels)
        weights = loss.ends.callable_weights(ends[0])
        true, wrong = (
            float(loss.of((x, labels), 0, 0.5)(weights))
            for labels in (y, (y + 1) % 3)
        )
        assert (true == wrong) == without_labels


@pytest.mark.parametrize("lam", [0.0, 1.0])
def test_the_ends_themselves_are_perfect(
    ends: tuple[State, State], lam: float
) -> None:
    batch = next(iter(train_data(shuffle=False)))
    loss = loss_between(ends, without_labels=True)
    own, other = (
        float(loss.of(batch, 0, lam)(loss.ends.callable_weights(end)))
        for end in (ends[int(lam)], ends[1 - int(lam)])
    )
    assert own == pytest.approx(0, abs=1e-10)
    assert other > 0.01


def test_a_network_without_a_training_step_will_do() -> None:
    net = torch.nn.Linear(FEATURES, 2)
    inner = InnerModel(net, inner_loss("outputs"))
    assert float(inner.loss_at({}, torch.ones(1, FEATURES), 0)) == 0


def test_another_word_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="loss='logits' is unknown"):
        inner_loss("logits")  # type: ignore[arg-type]
