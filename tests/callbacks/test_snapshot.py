"""CheckpointSnapshot: when it saves, what is in the files, how it survives."""

from __future__ import annotations

import pytest
import torch
from helpers.classifier import Classifier, train_loader, val_loader
from helpers.trainers import trainer_in
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_rebasin import CheckpointSnapshot
from lightning_rebasin.errors import (
    CheckpointError,
    ConfigurationError,
    OutputError,
)
from lightning_rebasin.landscape import load_trajectory


def fit(tmp_path, *callbacks, ckpt_path=None, **kwargs):
    seed_everything(1, verbose=False)
    module = Classifier()
    trainer = trainer_in(tmp_path, callbacks=list(callbacks), **kwargs)
    trainer.fit(module, train_loader(), val_loader(), ckpt_path=ckpt_path)
    return trainer, module


def steps(folder):
    return [s.step for s in load_trajectory(folder)]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ({}, [0, 4, 8, 12]),
        ({"every_n_epochs": 2}, [0, 8]),
        ({"every_n_train_steps": 5}, [0, 5, 10]),
        ({"at_steps": [7, 2, 2, 99]}, [2, 7]),
        ({"at_steps": [0]}, [0]),
        ({"per_decade": 3}, [0, 1, 2, 5, 10]),
        (
            {"every_n_train_steps": 5, "every_n_epochs": 1},
            [0, 4, 5, 8, 10, 12],
        ),
    ],
)
def test_schedules(tmp_path, schedule, expected):
    fit(tmp_path, CheckpointSnapshot(tmp_path / "s", **schedule), max_epochs=3)
    assert steps(tmp_path / "s") == expected
    assert len(list((tmp_path / "s").iterdir())) == len(expected) + 1


def test_accumulation_counts_optimizer_steps(tmp_path):
    fit(
        tmp_path,
        CheckpointSnapshot(tmp_path / "s", every_n_train_steps=1),
        max_epochs=2,
        accumulate_grad_batches=2,
    )
    assert steps(tmp_path / "s") == [0, 1, 2, 3, 4]


def test_a_snapshot_is_the_state_at_its_step_and_loads_everywhere(tmp_path):
    seen = {}

    class Witness(Callback):
        def on_train_batch_end(self, trainer, module, *_):
            seen[trainer.global_step] = {
                k: v.clone() for k, v in module.state_dict().items()
            }

    fit(
        tmp_path,
        Witness(),
        CheckpointSnapshot(tmp_path / "s", every_n_train_steps=3),
    )
    snapshots = {s.step: s for s in load_trajectory(tmp_path / "s")}
    for step in (3, 6):
        state = snapshots[step].state_dict()
        assert state.keys() == seen[step].keys()
        assert all(torch.equal(state[k], seen[step][k]) for k in state)
        assert snapshots[step].epoch == (step - 1) // 4
    payload = torch.load(snapshots[6].path, weights_only=True)
    assert payload["global_step"] == 6
    assert (
        "optimizer_states" not in payload or payload["optimizer_states"] == []
    )
    module = Classifier.load_from_checkpoint(snapshots[6].path)
    assert torch.equal(module.net.fc1.weight, seen[6]["net.fc1.weight"])
    trainer_in(tmp_path, logger=False).validate(
        Classifier(), val_loader(), ckpt_path=snapshots[6].path, verbose=False
    )


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("float16", torch.float16), ("bfloat16", torch.bfloat16)],
)
def test_half_precision(tmp_path, precision, dtype):
    _, module = fit(
        tmp_path,
        CheckpointSnapshot(
            tmp_path / "s", every_n_epochs=2, precision=precision
        ),
    )
    state = list(load_trajectory(tmp_path / "s"))[-1].state_dict()
    for name, tensor in module.state_dict().items():
        assert state[name].dtype == dtype
        assert torch.equal(state[name], tensor.to(dtype))


def test_default_folder_is_beside_the_logs(tmp_path):
    callback = CheckpointSnapshot()
    with pytest.raises(ConfigurationError, match="once training has started"):
        _ = callback.folder
    fit(tmp_path, callback)
    assert callback.folder == tmp_path / "logs" / "version_0" / "snapshots"
    assert steps(callback.folder) == [0, 4, 8]


@pytest.mark.parametrize(
    ("keep", "expected"), [("newest", [10, 11, 12]), ("spread", [0, 2, 12])]
)
def test_disk_use_is_bounded(tmp_path, keep, expected):
    callback = CheckpointSnapshot(
        tmp_path / "s", every_n_train_steps=1, limit=3, keep=keep
    )
    fit(tmp_path, callback, max_epochs=3)
    assert len(list((tmp_path / "s").glob("*.ckpt"))) == 3
    assert steps(tmp_path / "s") == expected


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists")
def test_resuming_fills_no_gap_twice_and_leaves_none(tmp_path):
    """Crash in epoch 3 after more snapshots were written, resume from the checkpoint of epoch 2."""

    class Crash(Callback):
        def on_train_batch_end(
            self, trainer, module, outputs, batch, batch_idx
        ):
            if trainer.global_step == 11:
                raise RuntimeError("crash")

    folder = tmp_path / "s"
    saver = ModelCheckpoint(
        tmp_path / "ckpt", save_top_k=-1, filename="{step}"
    )
    with pytest.raises(RuntimeError, match="crash"):
        fit(
            tmp_path / "1", CheckpointSnapshot(folder, every_n_train_steps=3), saver, Crash(),
            max_epochs=4, enable_checkpointing=True,
        )  # fmt: skip
    assert steps(folder) == [0, 3, 6, 9]
    before = {s.step: s.state_dict() for s in load_trajectory(folder)}
    resumed = [
        CheckpointSnapshot(folder, every_n_train_steps=3),
        ModelCheckpoint(tmp_path / "ckpt", filename="last"),
    ]
    fit(
        tmp_path / "2",
        *resumed,
        ckpt_path=tmp_path / "ckpt" / "step=8.ckpt",
        max_epochs=4,
        enable_checkpointing=True,
    )
    assert steps(folder) == [0, 3, 6, 9, 12, 15]
    assert len(list(folder.glob("*.ckpt"))) == 6
    after = {s.step: s.state_dict() for s in load_trajectory(folder)}
    assert all(torch.equal(before[6][k], after[6][k]) for k in before[6])


def test_the_default_folder_is_found_again_after_a_resume(tmp_path):
    first = CheckpointSnapshot()
    trainer, _ = fit(tmp_path / "1", first, max_epochs=1)
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    second = CheckpointSnapshot()
    fit(tmp_path / "2", second, max_epochs=2, ckpt_path=tmp_path / "x.ckpt")
    assert second.folder == first.folder
    assert steps(first.folder) == [0, 4, 8]


def test_another_runs_folder_is_not_overwritten(tmp_path):
    fit(tmp_path / "1", CheckpointSnapshot(tmp_path / "s"))
    before = {p: p.read_bytes() for p in (tmp_path / "s").iterdir()}
    with pytest.raises(OutputError, match="another run"):
        fit(tmp_path / "2", CheckpointSnapshot(tmp_path / "s"))
    assert before == {p: p.read_bytes() for p in (tmp_path / "s").iterdir()}


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file"):
        fit(tmp_path, CheckpointSnapshot(tmp_path / "file" / "s"))


def test_two_callbacks_need_two_folders(tmp_path):
    one = CheckpointSnapshot(tmp_path / "a", every_n_epochs=1)
    two = CheckpointSnapshot(tmp_path / "b", every_n_train_steps=2)
    fit(tmp_path, one, two)
    assert one.state_key != two.state_key
    assert (steps(tmp_path / "a"), steps(tmp_path / "b")) == (
        [0, 4, 8],
        [0, 2, 4, 6, 8],
    )


def test_missing_files_are_named(tmp_path):
    fit(tmp_path, CheckpointSnapshot(tmp_path / "s"))
    (tmp_path / "s" / "step=000000004.ckpt").unlink()
    with pytest.raises(CheckpointError, match="step=000000004"):
        list(load_trajectory(tmp_path / "s"))


@pytest.mark.parametrize(
    "options",
    [
        {"every_n_train_steps": 0},
        {"every_n_epochs": -1},
        {"per_decade": 0},
        {"limit": 0},
        {"at_steps": [-3]},
        {"precision": "half"},
        {"keep": "oldest"},
    ],
)
def test_options_that_cannot_work_are_refused_at_once(options):
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        CheckpointSnapshot("s", **options)
