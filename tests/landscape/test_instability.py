"""Instability analysis: a training that the first samples decide, one that nothing does, and interruptions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.bistable import Bistable, noise
from helpers.classifier import Classifier, blobs
from lightning.pytorch import Callback, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_rebasin.errors import ConfigurationError
from lightning_rebasin.landscape import Instability, measure_instability

HELD_OUT = [torch.zeros(1)]


def bistable(**options: object) -> Instability:
    """Forks at the beginning and when the valley is reached; the children of seed 1 part, see below."""
    given = {"max_epochs": 4, "accelerator": "cpu", "points": 3, **options}
    forks = given.pop("forks", (0, 24))
    make = given.pop("make", Bistable)
    train = given.pop("train", noise())
    return measure_instability(make, train, HELD_OUT, forks, **given)


def test_the_first_samples_decide_and_the_later_ones_do_not() -> None:
    found = bistable(seeds=range(4))
    assert found.metric == "accuracy"
    assert found.steps == 48
    # Half of the pairs part at the beginning: then the line leads through w = 0, where accuracy is 0.
    parted = [found.heights(seed)[0] for seed in found.seeds]
    assert set(parted) == {0.0, 1.0}
    for seed, height in zip(found.seeds, parted, strict=True):
        curve = found.curves[seed, 0]
        assert curve.values["accuracy"][0] == 1.0
        # L = 1 at w = 0, against hardly anything in the valleys.
        assert (curve.height("loss") > 0.9) == (height == 1.0)
        assert found.heights(seed)[1] == 0.0
    assert found.stable == (False, True)
    assert found.stable_from == 24


def test_a_convex_training_is_stable_from_the_beginning() -> None:
    """Logistic regression: on a line between two points a convex loss has no barrier."""

    class Logistic(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.net = torch.nn.Linear(6, 3)

        def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
            logits = self.net(batch[0])
            loss = torch.nn.functional.cross_entropy(logits, batch[1])
            self.log("val_loss", loss)
            self.log("val_acc", (logits.argmax(1) == batch[1]).float().mean())

    train = DataLoader(blobs(96, 0), batch_size=8, shuffle=True)
    test = DataLoader(blobs(200, 1), batch_size=50)
    found = measure_instability(
        Logistic, train, test, [0], max_epochs=2, accelerator="cpu", points=5
    )
    curve = found.curves[0, 0]
    chord = curve.height("val_loss", "chord")
    assert chord == pytest.approx(0, abs=1e-6)
    assert curve.values["val_loss"][0] != curve.values["val_loss"][-1]


class Stop(Callback):
    """Interrupts the training that reaches a step for the nth time; counts the steps."""

    def __init__(self, step: int, time: int) -> None:
        self.step, self.time, self.steps = step, time, 0

    def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
        self.steps += 1
        if trainer.global_step == self.step:
            self.time -= 1
            if self.time == 0:
                raise RuntimeError("power failure")


def test_an_interrupted_study_goes_on(tmp_path: Path) -> None:
    whole = bistable(seeds=[1])
    folder = tmp_path / "runs"
    # The parent ends at step 24; the third child to reach step 40 is the first of the second fork.
    with pytest.raises(RuntimeError, match="power failure"):
        bistable(seeds=[1], folder=folder, callbacks=[Stop(40, 3)])
    kept = {p.name for p in (folder / "seed-1").iterdir()}
    children = {"step=0-child-1.ckpt", "step=0-child-2.ckpt"}
    assert kept == {"step=24.ckpt", *children}
    counting = Stop(0, 0)
    found = bistable(seeds=[1], folder=folder, callbacks=[counting])
    assert found.curves == whole.curves
    assert counting.steps == 2 * 24
    # Nothing is left to train; a further fork needs its parent and its children.
    counting.steps = 0
    bistable(seeds=[1], folder=folder, callbacks=[counting])
    assert counting.steps == 0
    more = bistable(
        seeds=[1], folder=folder, callbacks=[counting], forks=[0, 12, 24]
    )
    assert counting.steps == 24 + 2 * 36
    assert more.curves[1, 24] == whole.curves[1, 24]


def test_children_are_checkpoints_of_the_user_s_module(tmp_path: Path) -> None:
    bistable(folder=tmp_path / "runs", forks=[0])
    path = tmp_path / "runs/seed-0/step=0-child-2.ckpt"
    module = Bistable.load_from_checkpoint(path, weights_only=True)
    assert abs(float(module.w.detach())) == pytest.approx(1, abs=0.3)


def test_global_random_numbers_are_left_alone() -> None:
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    bistable(forks=[0], max_epochs=1)
    assert torch.equal(torch.rand(3), expected)


def test_wrong_input_is_a_clear_error(tmp_path: Path) -> None:
    for options, words in (
        ({"forks": []}, "give steps from 0 on"),
        ({"forks": [-1]}, "give steps from 0 on"),
        ({"seeds": []}, "one seed or more"),
        ({"forks": [500]}, "before its fork at step 500"),
        ({"forks": [48]}, "cannot be forked at step 48"),
        ({"train": noise(shuffle=False)}, "came in the same order"),
        ({"make": lambda: Bistable(accuracy=False)}, "larger is better"),
    ):
        with pytest.raises(ConfigurationError, match=words):
            bistable(**options)
    folder = tmp_path / "runs"
    bistable(folder=folder, forks=[0])
    with pytest.raises(ConfigurationError, match="another training"):
        bistable(folder=folder, forks=[0], max_epochs=2)
