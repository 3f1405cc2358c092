"""What a trainer knows."""

from __future__ import annotations

import torch
from helpers.trainers import trainer_in
from lightning.pytorch import Callback

from lightning_rebasin.callbacks.trainer import (
    callbacks_of,
    is_dry_run,
    object_gatherer,
)


def test_callbacks_and_dry_runs_are_seen(tmp_path):
    mine = Callback()
    trainer = trainer_in(tmp_path, callbacks=[mine])
    assert mine in callbacks_of(trainer)
    assert not is_dry_run(trainer)
    assert is_dry_run(trainer_in(tmp_path, fast_dev_run=True))


def test_one_process_has_nothing_to_gather(tmp_path):
    assert object_gatherer(trainer_in(tmp_path)) is None


def test_objects_of_all_processes_come_in_order(monkeypatch):
    class Two:
        world_size = 2

    def gathered(into, item):
        into[:] = [item, "other"]

    monkeypatch.setattr(torch.distributed, "all_gather_object", gathered)
    gather = object_gatherer(Two())
    assert gather({"a": 1}) == [{"a": 1}, "other"]
