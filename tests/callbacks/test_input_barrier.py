"""InputBarrier follows fixed pairs of inputs through training, and training does not notice."""

from __future__ import annotations

import csv

import pytest
import torch
from helpers.classifier import Classifier, blobs, train_loader, val_loader
from helpers.trainers import trainer_in
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint

from lightning_rebasin import InputBarrier, input_barrier
from lightning_rebasin.errors import (
    BarrierWarning,
    ConfigurationError,
    DataError,
)


def given(count=3):
    inputs, labels = blobs(40, 5).tensors
    own = inputs[labels == 1]
    target = torch.ones(count, dtype=torch.long)
    return {"a": own[:count], "b": own[count : 2 * count], "target": target}


def fit(tmp_path, *callbacks, module=None, **options):
    seed_everything(7, verbose=False)
    module = module or Classifier(dropout=0.3, noise=True)
    trainer = trainer_in(tmp_path, callbacks=list(callbacks), **options)
    trainer.fit(module, train_loader(), val_loader())
    return trainer, module


CONFIGURATIONS = {
    "plain": {},
    "sanity check": {"num_sanity_val_steps": 2},
    "bf16-mixed": {"precision": "bf16-mixed"},
    "64-true": {"precision": "64-true"},
    "no inference mode": {"inference_mode": False},
    "averaged weights": {"average": True},
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_training_is_bitwise_the_same(tmp_path, name):
    options = dict(CONFIGURATIONS[name])
    average = options.pop("average", False)
    found = []
    for attach in (False, True):
        callbacks = [EMAWeightAveraging(decay=0.5)] if average else []
        barrier = InputBarrier(4, points=3)
        callbacks += [barrier] if attach else []
        trainer, module = fit(tmp_path / str(attach), *callbacks, **options)
        metrics = {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if not name.startswith("input_barrier")
        }
        state = [*module.state_dict().values(), torch.get_rng_state()]
        optimizer = trainer.optimizers[0].state_dict()["state"]
        for values in optimizer.values():
            state += list(values.values())
        found.append((state, metrics, module.train_losses))
    assert len(barrier.measurements) == 2
    (plain, *others), (watched, *same) = found
    assert others == same
    assert len(plain) == len(watched)
    for one, other in zip(plain, watched, strict=True):
        assert torch.equal(one, other)


class Copies(Callback):
    """The weights that validation sees."""

    def __init__(self):
        self.states = []

    def on_validation_batch_end(self, trainer, module, *args):
        if args[2] == 0:
            state = module.state_dict()
            self.states.append({n: t.clone() for n, t in state.items()})


@pytest.mark.parametrize("average", [False, True])
def test_it_measures_what_validation_sees(tmp_path, average):
    extra = [EMAWeightAveraging(decay=0.5)] if average else []
    copies, barrier, pairs = Copies(), InputBarrier(given(), points=5), given()
    trainer, _ = fit(tmp_path, *extra, barrier, copies)
    assert [m.epoch for m in barrier.measurements] == [0, 1]
    for state, measured in zip(
        copies.states, barrier.measurements, strict=True
    ):
        expected = input_barrier(
            _with_weights(state), *pairs.values(), points=5
        )
        assert measured.paths.maxima == pytest.approx(expected.maxima)
    maxima = expected.maxima
    logged = trainer.callback_metrics
    assert float(logged["input_barrier/max"]) == pytest.approx(
        sum(maxima) / len(maxima)
    )
    assert float(logged["input_barrier/worst"]) == pytest.approx(max(maxima))
    assert float(logged["input_barrier/height"]) == pytest.approx(
        sum(expected.heights()) / 3
    )


def _with_weights(state):
    module = Classifier(dropout=0.3)
    module.load_state_dict(state)
    return module


def test_pairs_of_the_first_batch_share_a_class_and_stay(tmp_path):
    barrier = InputBarrier(4, points=3)
    fit(tmp_path, barrier, num_sanity_val_steps=1)
    # What val_loader gives first.
    inputs, labels = (t[:16] for t in blobs(50, 1).tensors)
    first, last = (m.paths for m in barrier.measurements)
    assert len(first) == 4
    for path, later in zip(first, last, strict=True):
        assert torch.equal(path.corners, later.corners)
        classes = []
        for corner in path.corners:
            (row,) = (inputs == corner).all(1).nonzero()
            classes.append(int(labels[row]))
        assert classes[0] == classes[1]


def test_every_pair_has_a_row(tmp_path):
    barrier = InputBarrier(given(), points=3, prefix="own/pairs")
    fit(tmp_path, barrier)
    file = tmp_path / "logs" / "version_0" / "own-pairs.csv"
    with file.open() as stream:
        rows = list(csv.DictReader(stream))
    assert [(r["step"], r["epoch"], r["pair"]) for r in rows] == [
        (step, epoch, pair)
        for step, epoch in (("4", "0"), ("8", "1"))
        for pair in "012"
    ]
    found = [float(r["maximum"]) for r in rows[3:]]
    assert found == list(barrier.measurements[-1].paths.maxima)


def test_a_schedule_and_a_monitor(tmp_path):
    barrier = InputBarrier(2, points=3, every_n_epochs=2)
    best = ModelCheckpoint(
        tmp_path / "best",
        monitor="input_barrier/max",
        every_n_epochs=2,
        save_top_k=-1,
    )
    fit(
        tmp_path,
        barrier,
        best,
        max_epochs=5,
        enable_checkpointing=True,
    )
    assert [m.epoch for m in barrier.measurements] == [1, 3]
    scores = sorted(float(score) for score in best.best_k_models.values())
    means = [sum(m.paths.maxima) / len(m.paths) for m in barrier.measurements]
    assert scores == pytest.approx(sorted(means))


def test_a_resumed_run_follows_the_same_pairs(tmp_path):
    first = InputBarrier(2, points=3)
    trainer, module = fit(tmp_path, first)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = InputBarrier(2, points=3)
    resumed = trainer_in(tmp_path / "more", callbacks=[again], max_epochs=3)
    resumed.fit(
        module,
        train_loader(),
        val_loader(seed=9),
        ckpt_path=tmp_path / "last.ckpt",
        weights_only=True,
    )
    (measured,) = again.measurements
    for path, before in zip(
        measured.paths, first.measurements[0].paths, strict=True
    ):
        assert torch.equal(path.corners, before.corners)


def test_a_file_of_pairs(tmp_path):
    torch.save(given(), tmp_path / "pairs.pt")
    barrier = InputBarrier(tmp_path / "pairs.pt", points=3)
    fit(tmp_path, barrier)
    assert len(barrier.measurements[0].paths) == 3


def test_nothing_is_measured_in_a_dry_run(tmp_path):
    barrier = InputBarrier(given(), points=3)
    fit(tmp_path, barrier, fast_dev_run=True)
    assert barrier.measurements == []


def test_what_cannot_work_is_refused_before_training(tmp_path):
    for options, message in (
        ({"pairs": 0}, "pairs=0"),
        ({"points": 1}, "points=1"),
        ({"every_n_epochs": 0}, "every_n_epochs=0"),
        ({"chunk_size": 0}, "chunk_size=0"),
        ({"convention": "median"}, "convention='median'"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            InputBarrier(**options)
    with pytest.raises(DataError, match="no tensor 'b'"):
        InputBarrier({"a": torch.ones(2, 6)})
    with pytest.raises(DataError, match="cannot read pairs from"):
        InputBarrier(tmp_path / "none.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(DataError, match="not be a list"):
        InputBarrier(tmp_path / "list.pt")
    wrong = {**given(), "b": torch.ones(3, 5)}
    with pytest.raises(DataError, match="one shape"):
        fit(tmp_path, InputBarrier(wrong))
    with pytest.raises(ConfigurationError, match="its own prefix="):
        fit(tmp_path, InputBarrier(2), InputBarrier(3))
    with pytest.raises(ConfigurationError, match="will run none"):
        fit(tmp_path, InputBarrier(2), limit_val_batches=0)


def test_a_foreign_file_is_left_alone(tmp_path):
    file = tmp_path / "input_barrier.csv"
    file.write_text("mine\n")
    with pytest.warns(BarrierWarning, match="not written by InputBarrier"):
        fit(tmp_path, InputBarrier(2, points=3), logger=False)
    assert file.read_text() == "mine\n"
