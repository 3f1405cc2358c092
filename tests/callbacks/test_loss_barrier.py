"""What LossBarrier measures, logs, writes and refuses."""

from __future__ import annotations

import csv
import gc
import logging
import math
import warnings
from typing import ClassVar

import pytest
import torch
import torchmetrics
from helpers.classifier import Classifier, blobs, train_loader, val_loader
from helpers.trainers import trainer_in
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.callbacks import (
    EarlyStopping,
    EMAWeightAveraging,
    ModelCheckpoint,
)
from lightning.pytorch.loggers import CSVLogger
from packaging.version import Version
from torch import nn
from torch.utils.data import DataLoader

from lightning_rebasin import (
    CheckpointSnapshot,
    LossBarrier,
    Permutation,
    PermutationSpec,
    measure_barrier,
)
from lightning_rebasin.errors import (
    BarrierWarning,
    CheckpointError,
    ConfigurationError,
    EquivalenceError,
    NonFiniteError,
    RebasinError,
    SpecError,
    StateDictError,
    TraceError,
)
from lightning_rebasin.landscape import load_trajectory

METRICS = {
    "val_loss",
    "val_acc",
    "val_auroc",
    "val_f1",
    "val_macro",
    "val_largest",
    "val_count",
}


def trained(tmp_path, seed, epochs=2, **kwargs):
    """A trained module and its checkpoint."""
    seed_everything(seed, verbose=False)
    module = Classifier(**kwargs)
    trainer = trainer_in(tmp_path / f"seed{seed}", max_epochs=epochs)
    trainer.fit(module, train_loader(), val_loader())
    path = tmp_path / f"seed{seed}.ckpt"
    trainer.save_checkpoint(path)
    return module, path


def fit(tmp_path, *callbacks, module=None, loaders=None, **kwargs):
    seed_everything(1, verbose=False)
    module = module or Classifier()
    trainer = trainer_in(tmp_path, callbacks=list(callbacks), **kwargs)
    trainer.fit(module, train_loader(), loaders or val_loader())
    return trainer, module


def validated(tmp_path, module, **kwargs):
    return trainer_in(tmp_path / "validate", logger=False).validate(
        module, val_loader(), verbose=False, **kwargs
    )[0]


def test_both_ends_are_what_trainer_validate_says_of_the_two_checkpoints(
    tmp_path,
):
    """Accuracy, AUROC, F1, max and sum included; the last batch is smaller than the others."""
    _, path = trained(tmp_path, 5)
    barrier = LossBarrier(path, "none", points=3)
    _, module = fit(tmp_path, barrier, max_epochs=1)
    curve = barrier.measurements[-1].curves["naive"]
    mine = validated(tmp_path, module)
    theirs = validated(tmp_path, Classifier.load_from_checkpoint(path))
    assert set(curve.values) == METRICS == set(mine)
    for name in METRICS:
        assert curve.values[name][0] == pytest.approx(mine[name], rel=1e-6), (
            name
        )
        assert curve.values[name][-1] == pytest.approx(
            theirs[name], rel=1e-6
        ), name


def test_the_curve_between_is_what_measure_barrier_says(tmp_path):
    other, path = trained(tmp_path, 5)
    barrier = LossBarrier(path, "both", points=5, spec=Classifier().spec())
    trainer, module = fit(tmp_path, barrier, max_epochs=1)
    measured = barrier.measurements[-1]
    module.trainer = trainer
    expected = measure_barrier(
        module, module.state_dict(), other.state_dict(), val_loader(), points=5
    )
    for name in METRICS:
        assert measured.curves["naive"].values[name] == pytest.approx(
            expected.values[name], rel=1e-6
        )
    # A permuted reference is the same function, so both curves end alike; in between they differ.
    matched = measured.curves["matched"].values["val_loss"]
    assert matched[-1] == pytest.approx(
        expected.values["val_loss"][-1], rel=1e-5
    )
    assert abs(matched[2] - expected.values["val_loss"][2]) > 1e-4
    assert (
        measured.separations["matched"].distance
        < measured.separations["naive"].distance
    )
    assert 0 < measured.moved <= 1


def test_a_permuted_copy_of_the_model_is_matched_back(tmp_path):
    """The reference is the model itself with its hidden units shuffled: the matched barrier must vanish."""
    module, path = trained(tmp_path, 1, epochs=1, hidden=16)
    spec = module.spec()
    shuffled = Permutation.random(
        spec, torch.Generator().manual_seed(0)
    ).apply(module.state_dict())
    barrier = LossBarrier(shuffled, "both", spec=spec, points=5)
    twin = Classifier.load_from_checkpoint(path)
    trainer_in(tmp_path, callbacks=[barrier]).validate(
        twin, val_loader(), verbose=False
    )
    measured = barrier.measurements[0]
    assert measured.curves["matched"].height("val_loss") == pytest.approx(
        0, abs=1e-6
    )
    assert measured.curves["naive"].height("val_loss") > 0.01
    assert measured.separations["matched"].distance == pytest.approx(
        0, abs=1e-6
    )
    assert measured.separations["matched"].cosine == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("matching", ["activation", "correlation", "auto"])
def test_a_permuted_copy_is_matched_back_by_activations(tmp_path, matching):
    """Nothing is learnt, so the reference stays the model itself with its hidden units shuffled."""

    class Still(Classifier):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.0)

    seed_everything(1, verbose=False)
    module = Still(hidden=16)
    module.example_input_array = torch.randn(4, 6)
    shuffled = Permutation.random(
        module.spec(), torch.Generator().manual_seed(0)
    ).apply(module.state_dict())
    barrier = LossBarrier(shuffled, matching, points=3)
    trainer, _ = fit(tmp_path, barrier, module=module, max_epochs=1)
    measured = barrier.measurements[0]
    assert list(measured.curves) == ["matched"]
    assert measured.separations["matched"].distance == pytest.approx(
        0, abs=1e-6
    )
    assert measured.separations["naive"].distance > 1
    assert measured.curves["matched"].height("val_loss") == pytest.approx(
        0, abs=1e-6
    )
    auto = matching == "auto"
    assert measured.matching == ("weight" if auto else matching)
    assert ("barrier/matching" in trainer.callback_metrics) == auto
    names = {n for n in trainer.callback_metrics if "/matching/" in n}
    assert len(names) == (3 if auto else 0)
    text = (tmp_path / "logs" / "version_0" / "barrier.csv").read_text()
    how = {row["matching"] for row in csv.DictReader(text.splitlines())}
    assert how == {measured.matching}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"matching": "both"}, 0),
        ({"matching": "none"}, 0),
        ({"matching": "both", "batch_norm_batches": 3}, 3),
        ({"matching": "activation"}, 10),
        ({"matching": "auto", "batch_norm_batches": 2}, 2),
    ],
)
def test_batches_are_kept_only_where_they_are_needed(options, expected):
    assert LossBarrier("init", **options)._train_batches.maxlen == expected


@pytest.mark.parametrize("matching", ["activation", "correlation", "auto"])
def test_activations_need_training(tmp_path, matching):
    module = Classifier()
    barrier = LossBarrier(module.state_dict(), matching)
    with pytest.raises(ConfigurationError, match=r"trainer\.validate"):
        trainer_in(tmp_path, callbacks=[barrier]).validate(
            module, val_loader(), verbose=False
        )


@pytest.mark.filterwarnings("ignore:You are using the `dataloader_iter`")
def test_activations_need_batches_that_can_be_seen(tmp_path):
    class Iterating(Classifier):
        def training_step(self, dataloader_iter):
            raise AssertionError

    with pytest.raises(ConfigurationError, match="dataloader_iter"):
        fit(tmp_path, LossBarrier("init", "auto"), Alarm(), module=Iterating())


def test_a_validation_before_any_batch_is_not_measured(tmp_path):
    barrier = LossBarrier("init", "activation", points=2)

    class Forgetful(Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if trainer.current_epoch == 0:
                barrier._train_batches.clear()

    with pytest.warns(BarrierWarning, match="no training batch was seen"):
        fit(tmp_path, barrier, Forgetful())
    assert [m.step for m in barrier.measurements] == [8]


def test_a_spec_without_places_is_refused_in_setup(tmp_path):
    with pytest.raises(ConfigurationError, match="units can be seen"):
        fit(
            tmp_path,
            LossBarrier("init", "auto", spec=Classifier().spec()),
            Alarm(),
        )


def test_logged_names_reach_every_consumer(tmp_path):
    barrier = LossBarrier(
        "init",
        "both",
        points=3,
        spec=Classifier().spec(),
        metrics=["val_loss", "val_acc"],
    )
    checkpoint = ModelCheckpoint(
        tmp_path / "best", monitor="barrier/val_loss/matched"
    )
    stopping = EarlyStopping("barrier/val_loss", patience=1, mode="min")
    trainer, _ = fit(
        tmp_path,
        barrier,
        checkpoint,
        stopping,
        max_epochs=4,
        enable_checkpointing=True,
    )
    expected = (
        {
            f"barrier/{metric}{matched}{at}"
            for metric in ("val_loss", "val_acc")
            for matched in ("", "/matched")
            for at in ("", "/at")
        }
        | {
            f"barrier/{n}{m}"
            for n in ("distance", "cosine")
            for m in ("", "/matched")
        }
        | {"barrier/moved"}
    )
    assert expected == {
        name for name in trainer.callback_metrics if name.startswith("barrier")
    }
    assert {n for n in trainer.progress_bar_metrics if "barrier" in n} == {
        "barrier/val_loss",
        "barrier/val_loss/matched",
    }
    assert float(checkpoint.best_model_score) == pytest.approx(
        min(
            m.curves["matched"].height("val_loss")
            for m in barrier.measurements
        ),
        rel=1e-6,
    )
    assert stopping.best_score is not None
    logged = (
        (tmp_path / "logs" / "version_0" / "metrics.csv")
        .read_text()
        .splitlines()[0]
        .split(",")
    )
    assert expected <= set(logged)


def test_csv_holds_every_value(tmp_path):
    barrier = LossBarrier("init", "none", points=3, metrics=["val_loss"])
    fit(tmp_path, barrier)
    with (tmp_path / "logs" / "version_0" / "barrier.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(int(r["step"]), float(r["lambda"])) for r in rows] == [
        (s, x) for s in (4, 8) for x in (0, 0.5, 1)
    ]
    last = barrier.measurements[-1].curves["naive"]
    assert [float(r["value"]) for r in rows[3:]] == list(
        last.values["val_loss"]
    )
    assert {r["metric"] for r in rows} == {"val_loss"}


def test_init_is_the_model_before_training(tmp_path):
    seed_everything(1, verbose=False)
    start = Classifier().state_dict()
    barrier = LossBarrier("init", "none", points=2)
    trainer, module = fit(tmp_path, barrier)
    module.trainer = trainer
    expected = measure_barrier(
        module, module.state_dict(), start, val_loader(), points=2
    )
    assert barrier.measurements[-1].curves["naive"].values[
        "val_loss"
    ] == pytest.approx(expected.values["val_loss"])


def test_previous_is_the_last_snapshot_before_this_step(tmp_path):
    snapshots = CheckpointSnapshot(tmp_path / "s", every_n_epochs=1)
    barrier = LossBarrier("previous", "none", points=2)
    trainer, module = fit(tmp_path, snapshots, barrier, max_epochs=3)
    states = {s.step: s.state_dict() for s in load_trajectory(tmp_path / "s")}
    assert list(states) == [0, 4, 8, 12]
    module.trainer = trainer
    for measured, (now, before) in zip(
        barrier.measurements, [(4, 0), (8, 4), (12, 8)], strict=True
    ):
        expected = measure_barrier(
            module, states[now], states[before], val_loader(), points=2
        )
        assert measured.curves["naive"].values["val_loss"] == pytest.approx(
            expected.values["val_loss"], rel=1e-6
        )


def test_another_run_is_compared_at_the_same_step(tmp_path):
    fit(
        tmp_path / "other",
        CheckpointSnapshot(tmp_path / "s", every_n_epochs=1),
        module=Classifier(),
    )
    states = {s.step: s.state_dict() for s in load_trajectory(tmp_path / "s")}
    barrier = LossBarrier(tmp_path / "s", "none", points=2)
    seed_everything(9, verbose=False)
    trainer, module = fit(tmp_path, barrier, module=Classifier(), max_epochs=2)
    module.trainer = trainer
    for measured in barrier.measurements:
        at = measured.step
        expected = measure_barrier(
            module, states[at], states[at], val_loader(), points=2
        )
        assert measured.curves["naive"].values["val_loss"][
            -1
        ] == pytest.approx(expected.values["val_loss"][0], rel=1e-6)
    assert [m.step for m in barrier.measurements] == [4, 8]
    with pytest.warns(BarrierWarning, match="no snapshot at step 12"):
        fit(
            tmp_path / "longer",
            LossBarrier(tmp_path / "s", "none", points=2),
            max_epochs=3,
        )


@pytest.mark.parametrize(
    ("schedule", "steps"),
    [
        ({}, [2, 4, 6, 8, 10, 12]),
        ({"every_n_validations": 2}, [4, 8, 12]),
        ({"every_n_epochs": 2}, [6, 8]),
        ({"at_steps": [0, 5, 6, 100]}, [2, 6]),
    ],
)
def test_schedules(tmp_path, schedule, steps):
    barrier = LossBarrier("init", "none", points=2, **schedule)
    fit(tmp_path, barrier, max_epochs=3, val_check_interval=2)
    assert [m.step for m in barrier.measurements] == steps


def test_monitors_keep_working_between_measurements(tmp_path):
    barrier = LossBarrier("init", "none", points=2, every_n_validations=2)
    stopping = EarlyStopping("barrier/val_loss", patience=99, strict=False)
    trainer, _ = fit(tmp_path, barrier, stopping, max_epochs=3)
    assert "barrier/val_loss" in trainer.callback_metrics


def test_batches_can_be_limited(tmp_path):
    barrier = LossBarrier("init", "none", points=2, limit_batches=1)
    fit(tmp_path, barrier)
    assert barrier.measurements[0].curves["naive"].samples == 16


def test_limit_val_batches_limits_the_barrier(tmp_path):
    barrier = LossBarrier("init", "none", points=2)
    fit(tmp_path, barrier, limit_val_batches=2)
    assert barrier.measurements[0].curves["naive"].samples == 32


def test_several_loaders_are_told_apart_as_lightning_does(tmp_path):
    barrier = LossBarrier("init", "none", points=2)
    trainer, _ = fit(
        tmp_path,
        barrier,
        loaders=[val_loader(), val_loader(20, seed=4)],
        max_epochs=1,
    )
    curve = barrier.measurements[0].curves["naive"]
    for index in (0, 1):
        name = f"val_loss/dataloader_idx_{index}"
        assert curve.values[name][0] == pytest.approx(
            float(trainer.callback_metrics[name]), rel=1e-6
        )
        assert f"barrier/{name}" in trainer.callback_metrics


def test_several_instances_live_together(tmp_path):
    one = LossBarrier("init", "none", points=2)
    two = LossBarrier("init", "none", points=3, prefix="second/barrier")
    trainer, _ = fit(tmp_path, one, two)
    assert {"barrier/val_loss", "second/barrier/val_loss"} <= set(
        trainer.callback_metrics
    )
    assert one.state_key != two.state_key
    assert (tmp_path / "logs" / "version_0" / "second-barrier.csv").exists()


def test_averaged_weights_are_measured_whatever_the_order(tmp_path, caplog):
    caplog.set_level("INFO")
    logging.getLogger("lightning.pytorch").addHandler(caplog.handler)
    """λ = 0 must be what validation sees: the averaged weights, also if WeightAveraging comes after us."""
    for name, order in (("before", 1), ("after", -1)):
        barrier = LossBarrier("init", "none", points=2)
        callbacks = [EMAWeightAveraging(decay=0.7), barrier][::order]
        trainer, _ = fit(tmp_path / name, *callbacks)
        seen = float(trainer.callback_metrics["val_loss"])
        assert barrier.measurements[-1].curves["naive"].values["val_loss"][
            0
        ] == pytest.approx(seen, rel=1e-6)
    assert "averaged ones of EMAWeightAveraging" in caplog.text


def test_batch_norm_statistics_are_re_estimated_in_the_copy_only(tmp_path):
    class Keeper(Callback):
        def __init__(self):
            self.batches = []

        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            self.batches.append(batch)

    keeper = Keeper()
    barrier = LossBarrier("init", "none", points=3, batch_norm_batches=2)
    plain = LossBarrier("init", "none", points=3, prefix="plain")
    seed_everything(3, verbose=False)
    module = Classifier(batch_norm=True)
    start = {k: v.clone() for k, v in module.state_dict().items()}
    trainer, _ = fit(
        tmp_path, keeper, barrier, plain, module=module, max_epochs=1
    )
    module.trainer = trainer
    expected = measure_barrier(
        module,
        module.state_dict(),
        start,
        val_loader(),
        points=3,
        batch_norm=keeper.batches[-2:],
    )
    got = barrier.measurements[0].curves["naive"].values["val_loss"]
    assert got == pytest.approx(expected.values["val_loss"], rel=1e-5)
    assert plain.measurements[0].curves["naive"].values[
        "val_loss"
    ] != pytest.approx(got, rel=1e-3)


def test_validate_measures_too(tmp_path):
    _, path = trained(tmp_path, 5)
    barrier = LossBarrier(path, "none", points=3)
    module = Classifier()
    trainer = trainer_in(tmp_path, callbacks=[barrier])
    results = trainer.validate(module, val_loader(), verbose=False)[0]
    assert results["barrier/val_loss"] == pytest.approx(
        barrier.measurements[0].curves["naive"].height("val_loss")
    )
    assert not any(p.is_inference() for p in module.parameters())
    if Version(torchmetrics.__version__) < Version("1.9"):
        # Metrics that were validated cannot be trained with, with or without this callback.
        return
    trainer_in(tmp_path / "later").fit(module, train_loader(), val_loader())


def test_fast_dev_run_and_sanity_check_measure_nothing_and_write_nothing(
    tmp_path,
):
    barrier, snapshots = (
        LossBarrier("init", "none", points=3),
        CheckpointSnapshot(tmp_path / "s"),
    )
    fit(tmp_path, barrier, snapshots, fast_dev_run=True)
    assert barrier.measurements == []
    assert not (tmp_path / "s").exists()
    fit(tmp_path, barrier, num_sanity_val_steps=-1, max_epochs=1)
    assert len(barrier.measurements) == 1


def test_the_module_may_change_its_batches_in_place(tmp_path):
    class Scaling(Classifier):
        def validation_step(self, batch, batch_idx):
            batch[0].mul_(0.1)
            super().validation_step(batch, batch_idx)

    barrier = LossBarrier("init", "none", points=3)
    trainer, _ = fit(tmp_path, barrier, module=Scaling(), max_epochs=1)
    seen = float(trainer.callback_metrics["val_loss"])
    assert barrier.measurements[0].curves["naive"].values["val_loss"][
        0
    ] == pytest.approx(seen, rel=1e-6)


def test_the_users_logger_sees_nothing_of_the_copy(tmp_path):
    class Drawing(Classifier):
        drawn: ClassVar[list[int]] = []

        def validation_step(self, batch, batch_idx):
            self.logger.log_metrics({"drawn": 1.0}, step=len(self.drawn))
            if isinstance(self.logger, CSVLogger):
                self.drawn.append(batch_idx)
            super().validation_step(batch, batch_idx)

    fit(
        tmp_path,
        LossBarrier("init", "none", points=5),
        module=Drawing(),
        max_epochs=1,
    )
    assert Drawing.drawn == [0, 1, 2, 3]


def test_nested_lightning_modules_are_silenced_too(tmp_path):
    class Inner(Classifier):
        def score(self, x, y):
            loss = nn.functional.cross_entropy(self(x), y)
            self.log("inner_loss", loss)
            return loss

    class Outer(Classifier):
        def __init__(self):
            super().__init__()
            self.inner = Inner()

        def training_step(self, batch, batch_idx):
            return nn.functional.cross_entropy(self.inner(batch[0]), batch[1])

        def validation_step(self, batch, batch_idx):
            self.log(
                "val_loss",
                nn.functional.cross_entropy(self.inner(batch[0]), batch[1]),
            )

    barrier = LossBarrier("init", "none", points=2)
    fit(tmp_path, barrier, module=Outer(), max_epochs=1)
    assert set(barrier.measurements[0].curves["naive"].values) == {"val_loss"}


def test_unknown_metrics_are_named(tmp_path):
    with pytest.warns(
        BarrierWarning, match=r"does not log 'val_los'; it logs .*'val_loss'"
    ):
        fit(
            tmp_path,
            LossBarrier(
                "init", "none", points=2, metrics=["val_los", "val_acc"]
            ),
            max_epochs=1,
        )


def test_an_unwritable_log_folder_does_not_end_the_training(tmp_path):
    barrier = LossBarrier("init", "none", points=2)

    class Spoiler(Callback):
        def on_validation_start(self, trainer, module):
            folder = tmp_path / "logs" / "version_0" / "barrier.csv"
            folder.mkdir(parents=True, exist_ok=True)

    with pytest.warns(BarrierWarning, match=r"barrier\.csv"):
        trainer, _ = fit(tmp_path, Spoiler(), barrier, max_epochs=1)
    assert "barrier/val_loss" in trainer.callback_metrics


# What is refused, and when: always in setup, before the first training batch.


class Alarm(Callback):
    def on_train_start(self, trainer, module):
        raise AssertionError("training started")


def spoiled(tmp_path, kind):
    good = Classifier().state_dict()
    path = tmp_path / "reference.ckpt"
    if kind == "missing file":
        return tmp_path / "nowhere.ckpt", CheckpointError, "nowhere"
    if kind == "corrupt file":
        path.write_bytes(b"PK\x03\x04 not a checkpoint")
        return path, CheckpointError, "reference"
    if kind == "truncated file":
        torch.save({"state_dict": good}, path)
        path.write_bytes(path.read_bytes()[:-200])
        return path, CheckpointError, "reference"
    if kind == "empty folder":
        (tmp_path / "folder").mkdir()
        return tmp_path / "folder", CheckpointError, r"index\.json"
    if kind == "other architecture":
        good = Classifier(hidden=9).state_dict()
        return good, StateDictError, r"net\.fc1\.weight"
    if kind == "missing key":
        del good["net.fc1.bias"]
        torch.save({"state_dict": good}, path)
        return path, StateDictError, r"net\.fc1\.bias"
    if kind == "extra key":
        return (
            {**good, "net.extra": torch.zeros(1)},
            StateDictError,
            r"net\.extra",
        )
    assert kind == "not finite"
    good["net.fc1.bias"] = torch.full_like(good["net.fc1.bias"], math.nan)
    return good, NonFiniteError, r"net\.fc1\.bias"


@pytest.mark.parametrize(
    "kind",
    [
        "missing file",
        "corrupt file",
        "truncated file",
        "empty folder",
        "other architecture",
        "missing key",
        "extra key",
        "not finite",
    ],
)
def test_wrong_references_are_refused_in_setup(tmp_path, kind):
    reference, error, words = spoiled(tmp_path, kind)
    with pytest.raises(error, match=words):
        fit(tmp_path, LossBarrier(reference, "none"), Alarm())


def test_previous_needs_snapshots(tmp_path):
    with pytest.raises(ConfigurationError, match="CheckpointSnapshot"):
        fit(tmp_path, LossBarrier("previous", "none"), Alarm())


@pytest.mark.parametrize("kind", ["no loader", "no step", "limit 0"])
def test_no_validation_is_refused_in_setup(tmp_path, kind):
    class Stepless(Classifier):
        validation_step = None

    trainer = trainer_in(
        tmp_path,
        callbacks=[LossBarrier("init", "none"), Alarm()],
        limit_val_batches=0 if kind == "limit 0" else 1.0,
    )
    with (
        pytest.raises(ConfigurationError, match="no validation"),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        if kind == "no loader":
            trainer.fit(Classifier(), train_loader())
        else:
            trainer.fit(
                Stepless() if kind == "no step" else Classifier(),
                train_loader(),
                val_loader(),
            )


def test_without_example_input_the_first_validation_batch_shows_the_symmetries(
    tmp_path,
):
    class Stepwise(Classifier):
        """What forward takes is in no batch: only validation_step can be run."""

        def forward(self, x, scale):
            return self.net(x) * scale

        def training_step(self, batch, batch_idx):
            loss = torch.nn.functional.cross_entropy(
                self(batch[0], 2.0), batch[1]
            )
            self.log("train_loss", loss)
            return loss

        def validation_step(self, batch, batch_idx):
            loss = torch.nn.functional.cross_entropy(
                self(batch[0], 2.0), batch[1]
            )
            self.log("val_loss", loss)

    for module in (Stepwise(), Classifier()):
        module.example_input_array = None
        barrier = LossBarrier("init", "both")
        fit(tmp_path / type(module).__name__, barrier, module=module)
        assert next(iter(barrier._aligner._spec.groups.values())).size == 8
        assert barrier.measurements[-1].moved is not None


def test_all_kinds_measure_between_both_ends_in_canonical_gauge(tmp_path):
    seed_everything(0, verbose=False)
    other = Classifier().state_dict()
    module = Classifier()
    barrier = LossBarrier(other, "both", kinds="all", points=3)
    fit(tmp_path, barrier, module=module)
    alignment = barrier._aligner
    kinds = {group.kind for group in alignment._spec.groups.values()}
    assert kinds == {"permutation", "scale"}
    weights = {n: other[n] for n in alignment._spec.tensors}
    live = {n: module.state_dict()[n] for n in alignment._spec.tensors}
    expected = measure_barrier(
        module,
        alignment._spec.canonicalise(live),
        alignment._last.apply(weights),
        val_loader(),
        points=3,
    )
    found = barrier.measurements[-1].curves["matched"]
    assert found.values["val_loss"] == pytest.approx(
        expected.values["val_loss"], rel=1e-5
    )
    # In one gauge the ends are nearer than in two.
    separations = barrier.measurements[-1].separations
    assert separations["matched"].distance < separations["naive"].distance


def test_a_buffer_that_the_reference_shares_is_not_permuted(tmp_path):
    class Offset(Classifier):
        def __init__(self):
            super().__init__()
            self.extra = nn.Linear(self.net.fc1.in_features, 5)
            self.last = nn.Linear(5, self.net.fc2.out_features)
            self.register_buffer("table", torch.arange(8.0).sin())

        def forward(self, x):
            hidden = torch.relu(self.net.fc1(x) + self.table)
            return self.net.fc2(hidden) + self.last(torch.relu(self.extra(x)))

    seed_everything(3, verbose=False)
    other = Offset().state_dict()
    barrier = LossBarrier(other, "weight", points=3)
    fit(tmp_path, barrier, module=Offset(), max_epochs=3)
    assert [g.size for g in barrier._aligner._last.spec.groups.values()] == [5]
    assert len(barrier.measurements) == 3
    assert 0 < barrier.measurements[-1].moved <= 1


def test_a_module_that_runs_on_no_batch_is_refused_before_training(tmp_path):
    class Picky(Classifier):
        """Its loss is a number that has forgotten where it came from."""

        def forward(self, x, scale):
            return self.net(x) * scale

        def validation_step(self, batch, batch_idx):
            self(batch[0], 1.0)

    module = Picky()
    module.example_input_array = None
    with pytest.raises(TraceError, match="returned no tensor"):
        fit(
            tmp_path,
            LossBarrier("init", "both"),
            Alarm(),
            module=module,
            num_sanity_val_steps=1,
        )


def test_a_spec_of_another_network_is_refused_in_setup(tmp_path):
    with pytest.raises(StateDictError, match=r"net\.fc1\.weight"):
        fit(
            tmp_path,
            LossBarrier("init", "both", spec=Classifier(hidden=9).spec()),
            Alarm(),
        )
    (tmp_path / "spec.json").write_text("{}")
    with pytest.raises(SpecError):
        fit(
            tmp_path,
            LossBarrier("init", "both", spec=tmp_path / "spec.json"),
            Alarm(),
        )


def test_a_spec_that_changes_the_function_is_refused_in_setup(tmp_path):
    module = Classifier()
    table = {"net.fc1.weight": ("h", None), "net.fc2.weight": (None, "h")}
    wrong = PermutationSpec.from_table(table, module.state_dict())
    with pytest.raises(EquivalenceError, match=r"group 'h' .*is wrong"):
        fit(
            tmp_path,
            LossBarrier("init", "both", spec=wrong),
            Alarm(),
            module=module,
        )


def test_an_example_that_proves_nothing_is_said(tmp_path):
    module = Classifier()
    with torch.no_grad():
        module.net[-1].weight.zero_()
        module.net[-1].weight[0, 0] = 1e-30
    with pytest.warns(BarrierWarning, match="could not prove"):
        fit(tmp_path, LossBarrier("init", "both", points=3), module=module)


def test_one_prefix_belongs_to_one_instance(tmp_path):
    with pytest.raises(ConfigurationError, match="prefix"):
        fit(
            tmp_path,
            LossBarrier("init", "none"),
            LossBarrier("previous", "none"),
            Alarm(),
        )


@pytest.mark.filterwarnings("ignore:You are using the `dataloader_iter`")
def test_modules_that_consume_iterators_are_refused(tmp_path):
    class Iterating(Classifier):
        def validation_step(self, dataloader_iter):
            pass

    with pytest.raises(ConfigurationError, match="dataloader_iter"):
        fit(tmp_path, LossBarrier("init", "none"), Alarm(), module=Iterating())


@pytest.mark.parametrize(
    "options",
    [
        {"matching": "weights"},
        {"convention": "max"},
        {"points": 1},
        {"every_n_epochs": 0},
        {"every_n_validations": -1},
        {"every_n_epochs": 1, "at_steps": [1]},
        {"at_steps": [-1]},
        {"limit_batches": 0},
        {"batch_norm_batches": -1},
        {"batch_norm_batches": 0, "matching": "activation"},
        {"batch_norm_batches": 0, "matching": "correlation"},
        {"batch_norm_batches": 0, "matching": "auto"},
    ],
)
def test_options_that_cannot_work_are_refused_at_once(options):
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        LossBarrier("init", **options)


def test_errors_share_one_base_class():
    for error in (
        CheckpointError,
        ConfigurationError,
        NonFiniteError,
        SpecError,
        StateDictError,
    ):
        assert issubclass(error, RebasinError)


def test_memory_stays_within_three_copies(tmp_path):
    """Counted in tensors of the size of the big weight matrix that are alive while the points are evaluated."""
    counts = []

    class Counting(Classifier):
        def validation_step(self, batch, batch_idx):
            if batch_idx == 1:  # walking through all objects takes long
                size = self.net.fc1.weight.numel()
                gc.collect()  # cycles that nobody holds any more are no copies
                alive = [
                    t
                    for t in gc.get_objects()
                    if issubclass(type(t), torch.Tensor) and t.numel() == size
                ]
                counts.append(
                    len({t.untyped_storage().data_ptr() for t in alive})
                )
            super().validation_step(batch, batch_idx)

    module = Counting(hidden=101)
    reference = {k: v + 0.1 for k, v in module.state_dict().items()}
    without = trainer_in(tmp_path / "a", logger=False)
    without.validate(module, val_loader(), verbose=False)
    baseline = max(counts)
    counts.clear()
    barrier = LossBarrier(reference, "both", spec=module.spec(), points=5)
    trainer_in(tmp_path / "b", callbacks=[barrier]).validate(
        module, val_loader(), verbose=False
    )
    assert barrier.measurements
    assert (
        baseline < max(counts) <= baseline + 3
    )  # the reference, the re-matched reference, the probe


def test_uneven_batches_are_weighted(tmp_path):
    """One batch of 40 and one of 2: the barrier is that of the 42 samples, not of the two batches."""
    barrier = LossBarrier("init", "none", points=2)
    data = blobs(42, 3)
    _, module = fit(
        tmp_path,
        barrier,
        loaders=DataLoader(data, batch_size=40),
        max_epochs=1,
    )
    with torch.no_grad():
        expected = float(
            nn.functional.cross_entropy(
                module(data.tensors[0]), data.tensors[1]
            )
        )
    assert barrier.measurements[0].curves["naive"].values["val_loss"][
        0
    ] == pytest.approx(expected, rel=1e-6)


def test_layers_made_in_configure_model_are_seen(tmp_path):
    """There are no weights in setup yet, so the reference is checked right after they are made."""

    class Late(Classifier):
        def __init__(self):
            super().__init__()
            self.net = None

        def configure_model(self):
            if self.net is None:
                self.net = Classifier().net

    barrier = LossBarrier(Classifier().state_dict(), "none", points=2)
    fit(tmp_path / "1", barrier, module=Late(), max_epochs=1)
    assert len(barrier.measurements) == 1
    with pytest.raises(StateDictError, match=r"net\.fc1\.weight"):
        fit(
            tmp_path / "2",
            LossBarrier(Classifier(hidden=9).state_dict(), "none"),
            Alarm(),
            module=Late(),
        )
