"""A LightningModule is measured by its own step, and nothing of it reaches its trainer."""

from __future__ import annotations

import pytest
import torch
from helpers.classifier import FEATURES, Classifier, val_loader
from helpers.trainers import trainer_in
from lightning.pytorch import LightningModule
from lightning.pytorch.loggers.logger import DummyLogger
from torch import nn

from lightning_rebasin.errors import ConfigurationError
from lightning_rebasin.landscape.lightning_probe import (
    LightningProbe,
    copy_with_trainer,
    make_probe,
)
from lightning_rebasin.landscape.paths.line import Line
from lightning_rebasin.landscape.probe import FunctionProbe, Place
from lightning_rebasin.landscape.weights import weights_of


class Scale(LightningModule):
    """Logs in every spelling: by position, as a dict, reduced, once per loader."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(2.0))

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        value = (self.w * batch).mean()
        self.log("loss", value, True)  # noqa: FBT003  (as users write it)
        self.log_dict({"twice": 2 * value, "top": value}, reduce_fx="max")
        self.log("plain", value, add_dataloader_idx=False)
        self.logger.experiment.add_scalar("x", value)
        self.print("silent")


def measured(batches, place=Place):
    module = Scale()
    probe = LightningProbe(module, 2)
    a = {"w": torch.tensor(1.0)}
    b = {"w": torch.tensor(3.0)}
    points = [Line(a, b).at(lam) for lam in (0.0, 0.5)]
    with torch.no_grad():
        for index, batch in enumerate(batches):
            probe.evaluate(points, batch, place(index))
    assert float(module.w.detach()) == 2.0
    return probe.results(), probe


def test_every_logged_key_is_reduced_as_it_asks(capsys):
    batches = [torch.tensor([1.0]), torch.tensor([4.0, 4.0, 4.0])]
    rows, probe = measured(batches)
    # Means are weighted by samples: (1·1 + 3·4)/4.
    assert rows[0] == {"loss": 3.25, "twice": 8.0, "top": 4.0, "plain": 3.25}
    assert rows[1] == {"loss": 6.5, "twice": 16.0, "top": 8.0, "plain": 6.5}
    assert probe.samples == 4
    assert capsys.readouterr().out == ""


def test_several_loaders_are_told_apart_unless_the_step_says_no():
    rows, _ = measured([torch.ones(2)], lambda index: Place(index, 1, 2))
    assert set(rows[0]) == {
        "loss/dataloader_idx_1",
        "twice/dataloader_idx_1",
        "top/dataloader_idx_1",
        "plain",
    }


def test_only_the_copy_has_another_class():
    module = Scale()
    probe = LightningProbe(module, 1)
    assert type(module) is Scale
    assert isinstance(probe.module, Scale)
    assert type(probe.module) is not Scale
    assert type(probe.module).__name__ == "Scale"
    assert isinstance(probe.module.logger, DummyLogger)


def test_metrics_say_which_way_is_better(tmp_path):
    module = Classifier()
    module.trainer = trainer_in(tmp_path)
    module.trainer.validate(module, val_loader(), verbose=False)
    probe = LightningProbe(module, 1)
    state = {k: v.clone() for k, v in weights_of(module).items()}
    batch = (torch.randn(6, FEATURES), torch.arange(6) % 3)
    with torch.no_grad():
        probe.evaluate([Line(state, state).at(0.0)], batch, Place())
    assert probe.higher_is_better()["val_acc"] is True


def test_a_copy_may_ask_for_the_trainer():
    class Trainer:
        current_epoch = 7

    module = Scale()
    assert getattr(copy_with_trainer(module), "_trainer", None) is None
    module._trainer = trainer = Trainer()
    assert copy_with_trainer(module)._trainer is trainer


def test_the_probe_is_chosen_by_what_there_is_to_measure_with():
    assert isinstance(make_probe(Scale(), 1), LightningProbe)
    compiled = torch.compile(Scale(), backend="eager")
    assert isinstance(make_probe(compiled, 1), LightningProbe)
    assert isinstance(
        make_probe(nn.Linear(1, 1), 1, lambda m, x: m(x).mean()), FunctionProbe
    )
    for module in (nn.Linear(1, 1), LightningModule()):
        with pytest.raises(ConfigurationError, match="no validation_step of"):
            make_probe(module, 1)


def test_a_step_that_takes_the_iterator_is_refused():
    class Iterating(LightningModule):
        def validation_step(self, dataloader_iter):
            pass

    with pytest.raises(ConfigurationError, match="consumes its batches"):
        LightningProbe(Iterating(), 1)
