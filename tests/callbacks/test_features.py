"""LandscapeFeatures: numbers by hand, files, resuming, refusals, and a training that it leaves alone to the bit."""

from __future__ import annotations

import csv
import math

import pytest
import torch
from helpers.classifier import Classifier, train_loader, val_loader
from helpers.quiet import fit_quietly
from helpers.trainers import trainer_in
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import nn

from lightning_rebasin import CheckpointSnapshot, LandscapeFeatures
from lightning_rebasin.errors import (
    BarrierWarning,
    ConfigurationError,
    StateDictError,
)
from lightning_rebasin.landscape import FeatureHistory, predict_barrier


def fit(folder, *callbacks, module=None, ckpt_path=None, **options):
    """A short training; the module, the trainer and what the first callback recorded."""
    if module is None:
        seed_everything(3, verbose=False)
        module = Classifier()
    trainer = trainer_in(folder, callbacks=list(callbacks), **options)
    fit_quietly(trainer, module, train_loader(), val_loader(), ckpt_path)
    return module, trainer


def run_apart(folder):
    """Another run of the same start, with a snapshot at every epoch."""
    seed_everything(3, verbose=False)
    module = Classifier()
    start = {k: v.clone() for k, v in module.state_dict().items()}
    seed_everything(99, verbose=False)
    fit(folder, CheckpointSnapshot(folder / "snapshots"), module=module)
    return start, module.state_dict()


def flat(state, names):
    return torch.cat([state[name].double().flatten() for name in names])


def test_the_numbers_of_two_runs_of_one_start(tmp_path):
    start, other = run_apart(tmp_path / "other")
    features = LandscapeFeatures(
        tmp_path / "other" / "snapshots", limit_batches=100
    )
    module, _ = fit(tmp_path, features)
    row = features.history.rows[-1]
    assert [r.step for r in features.history.rows] == [4, 8]
    names = [name for name, _ in module.named_parameters()]
    parts = {
        "(all)": names,
        "net.fc1": [n for n in names if n.startswith("net.fc1")],
        "net.fc2": [n for n in names if n.startswith("net.fc2")],
    }
    assert set(row.parts) == set(parts)
    for layer, own in parts.items():
        found = row.parts[layer]
        here, there, begin = (
            flat(s, own) for s in (module.state_dict(), other, start)
        )
        cosine = nn.functional.cosine_similarity
        assert found.distance == pytest.approx(float((here - there).norm()))
        assert found.cosine == pytest.approx(float(cosine(here, there, 0)))
        assert found.moved == pytest.approx(float((here - begin).norm()))
        assert found.reference_moved == pytest.approx(
            float((there - begin).norm())
        )
        angle = cosine(here - begin, there - begin, 0).arccos().rad2deg()
        assert found.angle == pytest.approx(float(angle), abs=1e-4)
        assert 0 < found.angle < 90
    # Derivatives on all validation samples, by hand.
    x, y = val_loader().dataset.tensors
    module.eval().zero_grad()
    loss = nn.functional.cross_entropy(module(x), y)
    loss.backward()
    gradient = flat({n: p.grad for n, p in module.named_parameters()}, names)
    chord = flat(other, names) - flat(module.state_dict(), names)
    assert row.loss == pytest.approx(float(loss.detach()), rel=1e-5)
    assert row.whole.gradient_norm == pytest.approx(
        float(gradient.norm()), rel=1e-4
    )
    assert row.whole.slope == pytest.approx(float(gradient @ chord), rel=1e-4)
    layers = [row.parts[n] for n in ("net.fc1", "net.fc2")]
    assert sum(p.slope for p in layers) == pytest.approx(row.whole.slope)
    predicted = predict_barrier(
        module, module.state_dict(), other, val_loader(), by_layer=True,
        loss=lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1]),
    )  # fmt: skip
    assert row.whole.curvature == pytest.approx(
        predicted.curvatures[0], rel=1e-3
    )
    for part, layer in zip(layers, predicted.layers, strict=True):
        assert part.curvature == pytest.approx(layer.curvatures[0], rel=1e-3)


def test_one_run_alone_and_its_files(tmp_path):
    features = LandscapeFeatures(limit_batches=1)
    _, trainer = fit(tmp_path, features)
    whole = features.history.rows[-1].whole
    assert whole.distance == whole.moved > 0
    assert whole.curvature != 0
    assert math.isnan(whole.angle)
    assert float(trainer.callback_metrics["features/moved"]) == (
        pytest.approx(whole.moved)
    )
    assert "features/angle" not in trainer.callback_metrics
    folder = next(tmp_path.rglob("features.csv")).parent
    with (folder / "features.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [r["layer"] for r in rows] == ["(all)", "net.fc1", "net.fc2"] * 2
    assert float(rows[3]["moved"]) == whole.moved
    again = FeatureHistory.from_json(folder / "features.json")
    assert again.column("moved") == features.history.column("moved")
    assert (folder / "features.png").read_bytes().startswith(b"\x89PNG")


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(
            same(v, other[k]) for k, v in one.items()
        )
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


CONFIGURATIONS = {
    "plain": {},
    "batch norm": {"module_kwargs": {"batch_norm": True}},
    "bf16-mixed": {"precision": "bf16-mixed"},
    "64-true": {"precision": "64-true"},
    "sanity check and validation in the middle": {
        "num_sanity_val_steps": 2,
        "val_check_interval": 2,
    },
    "no inference mode": {"inference_mode": False},
    "averaged weights": {"extra": lambda: [EMAWeightAveraging(decay=0.5)]},
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_training_is_bitwise_the_same(tmp_path, name):
    options = dict(CONFIGURATIONS[name])
    kwargs = options.pop("module_kwargs", {})
    extra = options.pop("extra", list)
    left = []
    for attach in (False, True):
        seed_everything(7, verbose=False)
        module = Classifier(dropout=0.3, noise=True, **kwargs)
        features = LandscapeFeatures(limit_batches=2)
        callbacks = [*([features] if attach else []), *extra()]
        _, trainer = fit(
            tmp_path / str(attach), *callbacks, module=module, **options
        )
        logged = {
            k: float(v)
            for k, v in trainer.callback_metrics.items()
            if not k.startswith("features")
        }
        weights = {k: v.clone() for k, v in module.state_dict().items()}
        left.append(
            [
                weights,
                trainer.optimizers[0].state_dict(),
                torch.get_rng_state(),
                module.train_losses,
                logged,
            ]
        )
    for part, one, other in zip(
        ("weights", "optimizer", "generator", "losses", "logs"),
        *left,
        strict=True,
    ):
        assert same(one, other), part
    assert features.history.rows
    assert all(math.isfinite(x) for x in features.history.column("curvature"))


def test_a_resumed_run_goes_on(tmp_path):
    first = LandscapeFeatures(limit_batches=1)
    _, trainer = fit(tmp_path / "one", first, max_epochs=1)
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    second = LandscapeFeatures(limit_batches=1)
    fit(
        tmp_path / "two",
        second,
        module=Classifier(),
        ckpt_path=tmp_path / "end.ckpt",
        max_epochs=3,
    )
    assert [r.step for r in second.history.rows] == [4, 8, 12]
    before, again = first.history.rows[0], second.history.rows[0]
    assert again.whole.moved == before.whole.moved
    # The start is that of the run, not of its second part.
    assert (
        second.history.column("moved")[-1] > second.history.column("moved")[0]
    )


def test_schedules_and_layers_by_hand(tmp_path):
    features = LandscapeFeatures(
        every_n_epochs=2, limit_batches=0, layers={"last": ["net.fc2"]}
    )
    fit(tmp_path, features, max_epochs=4)
    assert [r.epoch for r in features.history.rows] == [1, 3]
    assert features.history.layers == ("last",)
    assert math.isnan(features.history.rows[0].whole.curvature)


def test_a_fork_elsewhere(tmp_path):
    start, _ = run_apart(tmp_path / "other")
    moved = {k: v + 1 for k, v in start.items()}
    state = dict(start)
    features = LandscapeFeatures(state, fork=moved, limit_batches=0)
    fit(tmp_path, features, max_epochs=1)
    # Both are as good as one place when seen from far away.
    assert 0 < features.history.rows[0].whole.angle < 10


class Counting(Classifier):
    def validation_step(self, batch, batch_idx):
        hits = (self(batch[0]).argmax(1) == batch[1]).float().mean()
        self.log("val_acc", hits)


def test_a_loss_without_gradient_costs_a_warning(tmp_path):
    seed_everything(3, verbose=False)
    features = LandscapeFeatures()
    with pytest.warns(BarrierWarning, match="no gradient"):
        fit(tmp_path, features, module=Counting(), max_epochs=1)
    assert features.history.rows[0].whole.moved > 0
    assert math.isnan(features.history.rows[0].whole.gradient_norm)


def test_what_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="limit_batches=-1"):
        LandscapeFeatures(limit_batches=-1)
    with pytest.raises(ConfigurationError, match="choose one"):
        LandscapeFeatures(every_n_epochs=1, at_steps=[3])
    with pytest.raises(ConfigurationError, match="prefix="):
        fit(tmp_path, LandscapeFeatures(), LandscapeFeatures("previous"))
    with pytest.raises(ConfigurationError, match="run none"):
        fit(tmp_path, LandscapeFeatures(), limit_val_batches=0)
    with pytest.raises(StateDictError, match="reference"):
        fit(tmp_path, LandscapeFeatures(nn.Linear(2, 2).state_dict()))
    with pytest.raises(ConfigurationError, match="'head'"):
        fit(tmp_path, LandscapeFeatures(layers={"x": ["head"]}))


def test_a_dry_run_records_nothing(tmp_path):
    features = LandscapeFeatures()
    fit(tmp_path, features, fast_dev_run=True)
    assert not features.history.rows
