"""Crash and resume: training is what it would be without the callbacks, and the callbacks go on where they were."""

from __future__ import annotations

import csv

import pytest
import torch
from helpers.classifier import Classifier, train_loader, val_loader
from helpers.trainers import trainer_in
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_rebasin import CheckpointSnapshot, LossBarrier
from lightning_rebasin.errors import ConfigurationError
from lightning_rebasin.landscape import load_trajectory

pytestmark = [
    pytest.mark.filterwarnings(
        "ignore:.* directory .* exists and is not empty"
    ),
    pytest.mark.filterwarnings(
        "ignore:You're resuming from a checkpoint that ended before the epoch ended"
    ),
]


class Crash(Callback):
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step == 11:
            raise RuntimeError("crash")


class Losses(Callback):
    def __init__(self):
        self.seen = []

    def on_validation_end(self, trainer, module):
        own = {
            k: float(v)
            for k, v in trainer.callback_metrics.items()
            if not k.startswith("barrier")
        }
        self.seen.append((trainer.global_step, own))


def callbacks(folder, attach, matching="both"):
    if not attach:
        return []
    spec = Classifier().spec() if matching == "both" else None
    return [
        LossBarrier("init", matching, spec=spec, points=3),
        LossBarrier("previous", "none", points=2, prefix="barrier_previous"),
        CheckpointSnapshot(folder / "snapshots", every_n_train_steps=3),
    ]


def crash_and_resume(
    folder, *, attach, checkpoint, resume_from, matching="both"
):
    """Train into a crash at step 11, resume from an earlier checkpoint, finish."""
    for phase in ("crash", "resume"):
        attached, losses = callbacks(folder, attach, matching), Losses()
        seed_everything(
            4, verbose=False
        )  # after the callbacks: building their spec draws initial weights
        saver = ModelCheckpoint(
            folder / "ckpt", save_top_k=-1, filename="{step}", **checkpoint
        )
        module = Classifier(dropout=0.2, noise=True)
        extra = [Crash()] if phase == "crash" else []
        trainer = trainer_in(
            folder,
            callbacks=[*attached, saver, losses, *extra],
            max_epochs=4,
            enable_checkpointing=True,
        )
        if phase == "crash":
            with pytest.raises(RuntimeError, match="crash"):
                trainer.fit(module, train_loader(), val_loader())
            crashed = attached
        else:
            path = folder / "ckpt" / f"step={resume_from}.ckpt"
            saved = torch.load(path, weights_only=True)["callbacks"]
            trainer.fit(module, train_loader(), val_loader(), ckpt_path=path)
    return trainer, module, losses.seen, crashed, attached, saved


@pytest.mark.parametrize(
    ("checkpoint", "resume_from"),
    [({"every_n_epochs": 1}, 8), ({"every_n_train_steps": 3}, 9)],
    ids=["epoch", "middle"],
)
def test_crash_and_resume(tmp_path, checkpoint, resume_from):
    options = {"checkpoint": checkpoint, "resume_from": resume_from}
    plain, module_a, seen_a, _, _, _ = crash_and_resume(
        tmp_path / "without", attach=False, **options
    )
    trainer, module_b, seen_b, crashed, attached, saved = crash_and_resume(
        tmp_path / "with", attach=True, **options
    )
    assert seen_a == seen_b
    assert module_a.train_losses == module_b.train_losses
    assert all(
        torch.equal(v, module_b.state_dict()[k])
        for k, v in module_a.state_dict().items()
    )
    states = [t.optimizers[0].state_dict()["state"] for t in (plain, trainer)]
    assert all(
        torch.equal(states[0][i][k], states[1][i][k])
        for i in states[0]
        for k in states[0][i]
    )

    barrier, previous, snapshots = attached
    assert [m.step for m in crashed[0].measurements] == [4, 8]
    assert [m.step for m in barrier.measurements] == [12, 16]
    # The reference is still the model before the crashed training began, and matching goes on from where it was.
    start = torch.load(
        tmp_path / "with" / "logs" / "version_0" / "barrier-init.ckpt",
        weights_only=True,
    )["state_dict"]
    seed_everything(4, verbose=False)
    fresh = Classifier(dropout=0.2, noise=True).state_dict()
    assert all(torch.equal(start[k], v) for k, v in fresh.items())
    orders = saved[barrier.state_key]["alignment"]["orders"]
    assert set(orders) == {"h"}
    assert saved[barrier.state_key]["validations"] == 2
    # One row per step, λ and curve, in order: nothing twice, nothing lost.
    with (
        tmp_path / "with" / "logs" / "version_0" / "barrier.csv"
    ).open() as file:
        steps = [
            int(row["step"])
            for row in csv.DictReader(file)
            if row["metric"] == "val_loss"
        ]
    assert steps == [step for step in (4, 8, 12, 16) for _ in range(6)]
    assert [s.step for s in load_trajectory(snapshots.folder)] == [
        0,
        3,
        6,
        9,
        12,
        15,
    ]
    assert [m.step for m in previous.measurements] == [12, 16]


def test_matching_goes_on_from_the_saved_permutation(tmp_path, monkeypatch):
    starts = []
    from lightning_rebasin.callbacks import alignment

    original = alignment.match_weights

    def spy(spec, reference, source, **options):
        starts.append(options["init"])
        return original(spec, reference, source, **options)

    monkeypatch.setattr(alignment, "match_weights", spy)
    _, _, _, _, (barrier, *_), saved = crash_and_resume(
        tmp_path, attach=True, checkpoint={"every_n_epochs": 1}, resume_from=8
    )
    # Crashed run: at steps 4 and 8.  Resumed run: at 12 and 16.
    assert starts[0] is None
    assert starts[1] is not None
    assert torch.equal(
        starts[2]["h"], saved[barrier.state_key]["alignment"]["orders"]["h"]
    )


@pytest.mark.filterwarnings("ignore:LossBarrier could not prove")
def test_the_best_of_three_matchings_goes_on_after_a_resume(tmp_path):
    options = {"checkpoint": {"every_n_epochs": 1}, "resume_from": 8}
    _, module_a, seen_a, _, _, _ = crash_and_resume(
        tmp_path / "without", attach=False, **options
    )
    trainer, module_b, seen_b, crashed, (barrier, *_), saved = (
        crash_and_resume(
            tmp_path / "with", attach=True, matching="auto", **options
        )
    )
    assert seen_a == seen_b
    assert all(
        torch.equal(v, module_b.state_dict()[k])
        for k, v in module_a.state_dict().items()
    )
    # At step 12 the resumed run has seen the four batches of one epoch.
    assert [m.step for m in crashed[0].measurements] == [4, 8]
    assert [m.step for m in barrier.measurements] == [12, 16]
    assert all(len(m.scores) == 3 for m in barrier.measurements)
    saved_state = saved[barrier.state_key]
    assert len(saved_state["alignment"]["orders"]) == 1
    assert "barrier/matching" in saved_state["scalars"]
    assert "barrier/matching" in trainer.callback_metrics


def test_init_is_refused_where_it_cannot_be_known(tmp_path):
    """The checkpoint was written without the callback, so nobody kept the initial weights."""
    module = Classifier()
    trainer = trainer_in(tmp_path / "1", max_epochs=1)
    trainer.fit(module, train_loader(), val_loader())
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    late = trainer_in(
        tmp_path / "2", callbacks=[LossBarrier("init", "none")], max_epochs=2
    )
    with pytest.raises(ConfigurationError, match="'init' is unknown"):
        late.fit(
            Classifier(),
            train_loader(),
            val_loader(),
            ckpt_path=tmp_path / "x.ckpt",
        )


def test_fitting_further_with_the_same_trainer(tmp_path):
    barrier, snapshots = (
        LossBarrier("init", "none", points=2),
        CheckpointSnapshot(tmp_path / "s"),
    )
    trainer = trainer_in(
        tmp_path, callbacks=[barrier, snapshots], max_epochs=1
    )
    module = Classifier()
    trainer.fit(module, train_loader(), val_loader())
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module, train_loader(), val_loader())
    assert [m.step for m in barrier.measurements] == [4, 8]
    assert [s.step for s in load_trajectory(tmp_path / "s")] == [0, 4, 8]
