"""Modules and trainers of the package ``pytorch_lightning`` are refused wherever they would be overlooked."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.classifier import Classifier, train_loader, val_loader
from helpers.trainers import trainer_in
from lightning.pytorch import Callback, Trainer
from torch import nn

from lightning_rebasin import (
    CheckpointSnapshot,
    CurveModule,
    LossBarrier,
    MergeModule,
    infer_spec,
    measure_barrier,
)
from lightning_rebasin.errors import ConfigurationError
from lightning_rebasin.landscape.other_lightning import refuse_other_lightning

MESSAGE = "import lightning.pytorch as pl"


class Foreign(nn.Module):
    """What a LightningModule of the other package is to this one: a module with the right methods."""

    __module__ = "pytorch_lightning.core.module"

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
        self.example_input_array = torch.zeros(2, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        return self.net(x)


class Heir(Foreign):
    """The user's own class, in the user's own package."""

    __module__ = "project.nets"


class ForeignTrainer(Trainer):
    """A trainer of the other package."""

    __module__ = "pytorch_lightning.trainer.trainer"


def test_measuring_names_the_import() -> None:
    net = Heir()
    state = net.state_dict()
    with pytest.raises(ConfigurationError, match=MESSAGE):
        measure_barrier(net, state, state, val_loader())


@pytest.mark.parametrize("kind", [MergeModule, CurveModule])
def test_learning_names_the_import(kind: type) -> None:
    net = Heir()
    state = net.state_dict()
    ends = [[state, state]] if kind is CurveModule else [state, state]
    with pytest.raises(ConfigurationError, match=MESSAGE):
        kind(net, *ends)


@pytest.mark.parametrize("kind", [LossBarrier, CheckpointSnapshot])
def test_callbacks_name_the_import(kind: type, tmp_path: Path) -> None:
    argument = "init" if kind is LossBarrier else tmp_path
    callback: Callback = kind(argument)
    trainer = trainer_in(tmp_path, callbacks=[callback])
    trainer.__class__ = ForeignTrainer
    with pytest.raises(ConfigurationError, match=MESSAGE):
        trainer.fit(Classifier(), train_loader(), val_loader())


def test_what_needs_no_lightning_works() -> None:
    """A network is a network: inference asks for nothing else, and a loss of one's own neither."""
    net = Heir()
    assert infer_spec(net).groups
    state = net.state_dict()

    def loss(module: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
        return nn.functional.cross_entropy(module(batch[0]), batch[1])

    curve = measure_barrier(
        net, state, state, val_loader(), points=3, loss=loss
    )
    assert curve.height("loss") == pytest.approx(0, abs=1e-6)


def test_everything_else_is_let_through() -> None:
    refuse_other_lightning(Classifier())
    refuse_other_lightning(nn.Linear(2, 2))
