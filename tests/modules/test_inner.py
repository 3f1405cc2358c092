"""The user's network inside: its own loss, at weights that are handed in."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.classifier import CLASSES, FEATURES, Classifier
from helpers.merging import State, fit, trained
from helpers.models import mlp
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_rebasin.errors import ConfigurationError
from lightning_rebasin.modules import MergeModule
from lightning_rebasin.modules.inner import InnerModel


def test_the_users_model_is_left_alone(
    ends: tuple[State, State], tmp_path: Path
) -> None:
    model = Classifier(hidden=16)
    before = copy.deepcopy(model.state_dict())
    fit(MergeModule(model, *ends), tmp_path, max_epochs=1)
    assert all(
        torch.equal(t, before[n]) for n, t in model.state_dict().items()
    )
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not model.train_losses
    assert model._trainer is None


def test_any_module_with_a_loss_function(tmp_path: Path) -> None:
    model = mlp(FEATURES, 8, CLASSES)
    ends = trained(model, 1), trained(model, 2)
    module = MergeModule(
        model,
        *ends,
        loss=lambda net, batch: cross_entropy(net(batch[0]), batch[1]),
    )
    fit(module, tmp_path, max_epochs=1)
    assert len(module.permutation.orders) == 1
    module.export(tmp_path / "merged.pt")
    model.load_state_dict(
        torch.load(tmp_path / "merged.pt", weights_only=True)
    )


class Manual(Classifier):
    def __init__(self) -> None:
        super().__init__(hidden=16)
        self.automatic_optimization = False


class Silent(Classifier):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return None


def test_models_without_a_loss_are_refused(
    ends: tuple[State, State], tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match="pass loss="):
        MergeModule(mlp(FEATURES, 16, CLASSES), *ends)
    with pytest.raises(ConfigurationError, match="optimises manually"):
        MergeModule(Manual(), *ends)
    with pytest.raises(ConfigurationError, match="returned NoneType"):
        fit(MergeModule(Silent(16), *ends), tmp_path)


class Line(LightningModule):
    """``y = w·x + b`` with the loss ``mean((y − 1)²)``; logs, and hands its batch number on."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))
        self.bias = nn.Parameter(torch.tensor(1.0))

    def training_step(self, batch: Tensor, batch_idx: int) -> Any:
        loss = (self.weight * batch + self.bias - 1).square().mean()
        self.log("loss", loss, prog_bar=True)
        self.log_dict({"idx": batch_idx})
        return {"loss": loss, "more": "ignored"}


def test_the_gradient_reaches_the_weights_that_were_given() -> None:
    inner = InnerModel(Line(), None)
    weight = torch.tensor(3.0, requires_grad=True)
    batch = torch.tensor([1.0, 2.0])
    loss = inner.loss_at({"weight": weight}, batch, 0)
    # The bias stays the copy's own, 1: mean of (3x)² is 9·5/2, its slope 2·3·5/2.
    assert loss.item() == pytest.approx(22.5)
    (gradient,) = torch.autograd.grad(loss, [weight])
    assert float(gradient) == pytest.approx(15.0)
    assert inner.model.state_dict()["weight"].item() == 2.0
    assert not any(p.requires_grad for p in inner.parameters())


def test_a_loss_function_replaces_the_training_step() -> None:
    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        assert isinstance(model, Line)
        return (model.weight * batch).sum().reshape(1, 1)

    inner = InnerModel(Line(), loss)
    found = inner(torch.tensor([1.0, 2.0]), 0)
    # A single number in any shape is a loss, and comes back as a scalar.
    assert found.shape == ()
    assert float(found) == 6.0


def test_log_calls_go_to_the_outer_module_with_their_arguments() -> None:
    class Outer(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.part = Line()

        def training_step(self, batch: Tensor, batch_idx: int) -> Any:
            return self.part.training_step(batch, batch_idx)

    inner = InnerModel(Outer(), None)
    batch = torch.ones(2)
    # Nobody listens yet: Lightning's own log would raise here.
    inner(batch, 0)
    heard: list[tuple[str, Any, dict[str, Any]]] = []

    def log(name: str, value: Any, **options: Any) -> None:
        heard.append((name, value, options))

    trainer = Trainer(logger=False, accelerator="cpu", barebones=True)
    inner.attach(trainer, log)
    loss = inner(batch, 5)
    assert heard == [("loss", loss, {"prog_bar": True}), ("idx", 5, {})]
    assert isinstance(inner.model, Outer)
    assert inner.model.trainer is trainer


@pytest.mark.parametrize(
    ("output", "named"),
    [
        (lambda _: 1.0, "float"),
        (lambda _: torch.zeros(2), "Tensor"),
        (lambda _: {"accuracy": torch.zeros(())}, "dict"),
        (lambda _: None, "NoneType"),
    ],
)
def test_what_is_no_loss_is_refused_with_its_type(
    output: Callable[[Tensor], Any], named: str
) -> None:
    inner = InnerModel(Line(), lambda _, batch: output(batch))
    message = f"the loss function of Line returned {named}; it must be"
    with pytest.raises(ConfigurationError, match=message):
        inner(torch.ones(1), 0)


def test_the_copy_trains_whatever_the_mode_of_the_original() -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(1, 1)).eval()
    inner = InnerModel(model, lambda net, batch: net(batch).sum())
    assert inner.model.training
    assert not model.training
    assert all(p.requires_grad for p in model.parameters())
