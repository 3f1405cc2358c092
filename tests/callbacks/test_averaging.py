"""Whose weights are measured while a callback averages them, and trainings with several optimizers or SWA."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.classifier import Classifier, train_loader, val_loader
from helpers.trainers import trainer_in
from lightning.pytorch import (
    Callback,
    LightningModule,
    Trainer,
    seed_everything,
)
from lightning.pytorch.callbacks import (
    EMAWeightAveraging,
    StochasticWeightAveraging,
)
from torch import Tensor
from torch.nn.functional import cross_entropy

from lightning_rebasin import LossBarrier, measure_barrier
from lightning_rebasin.errors import BarrierWarning, ConfigurationError


class CurrentWeights(Callback):
    """Keeps what the optimizer left at the end of every epoch, before validation changes anything."""

    def __init__(self) -> None:
        self.last: dict[str, Tensor] = {}

    def on_validation_start(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> None:
        """Copy."""
        state = pl_module.state_dict()
        self.last = {name: t.clone() for name, t in state.items()}


def fit(
    folder: Path, *callbacks: Callback, module: LightningModule | None = None
) -> LightningModule:
    """Two epochs of four steps."""
    seed_everything(1, verbose=False)
    module = module or Classifier()
    trainer = trainer_in(folder, callbacks=list(callbacks))
    trainer.fit(module, train_loader(), val_loader())
    return module


def first_loss(barrier: LossBarrier) -> float:
    """The loss of the running model at the last measurement."""
    return barrier.measurements[-1].curves["naive"].values["val_loss"][0]


def test_current_weights_are_measured_if_wanted(tmp_path: Path) -> None:
    kept = CurrentWeights()
    barrier = LossBarrier("init", "none", points=2, weights="current")
    averaged = LossBarrier("init", "none", points=2, prefix="averaged")
    average = EMAWeightAveraging(decay=0.9)
    module = fit(tmp_path, kept, average, barrier, averaged)
    expected = measure_barrier(
        module, kept.last, kept.last, val_loader(), points=2
    )
    assert first_loss(barrier) == pytest.approx(
        expected.values["val_loss"][0], rel=1e-6
    )
    assert abs(first_loss(barrier) - first_loss(averaged)) > 1e-3


def test_a_late_average_is_not_measured_silently(tmp_path: Path) -> None:
    late = EMAWeightAveraging(decay=0.9, update_starting_at_step=6)
    barrier = LossBarrier("init", "none", points=2)
    with pytest.warns(BarrierWarning, match="has not begun to average") as met:
        fit(tmp_path, late, barrier)
    # The second validation comes after step 8.
    assert len([w for w in met if "not begun" in str(w.message)]) == 1


def test_an_average_from_the_start_warns_of_nothing(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", BarrierWarning)
        fit(tmp_path, EMAWeightAveraging(decay=0.9), LossBarrier("init"))


def test_other_words_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="weights='live'"):
        LossBarrier("init", weights="live")  # type: ignore[arg-type]


class TwoOptimizers(Classifier):
    """Manual optimisation: one optimizer for the first layer, one for the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Each optimizer in its turn."""
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(cross_entropy(self(batch[0]), batch[1]))
            optimizer.step()

    def configure_optimizers(self) -> Any:
        """Two."""
        first, *others = self.parameters()
        return [
            torch.optim.SGD([first], lr=0.1),
            torch.optim.Adam(others, lr=0.01),
        ]


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        (TwoOptimizers, list),
        (Classifier, lambda: [StochasticWeightAveraging(0.01, 1)]),
    ],
    ids=["several optimizers", "stochastic weight averaging"],
)
@pytest.mark.filterwarnings("ignore:Swapping scheduler")
def test_the_training_stays_what_it_is(
    kind: type[LightningModule], more: Any, tmp_path: Path
) -> None:
    states = []
    for attached in ([], [LossBarrier("init", "weight", points=3)]):
        seed_everything(1, verbose=False)
        folder = tmp_path / str(len(attached))
        module = fit(folder, *attached, *more(), module=kind())
        states.append(module.state_dict())
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name
