"""The index of a folder of snapshots: read in order, never trusted, thinned evenly."""

from __future__ import annotations

import itertools
import json

import pytest
import torch

from lightning_rebasin.checkpoints import write_checkpoint
from lightning_rebasin.errors import CheckpointError
from lightning_rebasin.landscape.trajectory import (
    Snapshot,
    load_trajectory,
    read_index,
    surplus,
    write_index,
)


def test_what_was_written_is_read_back_in_order(tmp_path):
    run = []
    for step in (8, 0, 4):
        path = tmp_path / f"step={step}.ckpt"
        write_checkpoint(path, {"w": torch.full((2,), float(step))})
        run.append(Snapshot(step, step // 4, path))
    write_index(tmp_path, run)
    found = list(load_trajectory(tmp_path))
    assert found == sorted(run, key=lambda s: s.step)
    assert found[2].state_dict()["w"].tolist() == [8.0, 8.0]


def test_a_file_that_is_missing_is_named_when_its_turn_comes(tmp_path):
    write_index(tmp_path, [Snapshot(3, 0, tmp_path / "step=3.ckpt")])
    assert read_index(tmp_path)[0].step == 3
    with pytest.raises(CheckpointError, match=r"step=3\.ckpt is in the index"):
        list(load_trajectory(tmp_path))


def test_a_folder_without_index_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="is not a snapshot folder"):
        read_index(tmp_path)


def test_spread_keeps_the_gaps_even():
    """Against the definition: what stays covers the run, first and last included."""
    kept = []
    for step in range(200):
        kept.append(Snapshot(step, 0, None))
        gone = surplus(kept, 8, "spread")
        kept = [s for s in kept if s not in gone]
    found = [s.step for s in kept]
    gaps = [b - a for a, b in itertools.pairwise(found)]
    assert len(found) == 8
    assert found[0] == 0
    assert found[-1] == 199
    assert max(gaps) <= 70


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        '{"format": "lightning-rebasin-snapshots", "version": 1, "snapshots": [{}]}',
    ],
)
def test_damaged_indices_are_refused(tmp_path, text):
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"index\.json"):
        list(load_trajectory(tmp_path))


def test_an_index_cannot_point_outside(tmp_path):
    entry = {"step": 0, "epoch": 0, "file": "../../etc/passwd"}
    data = {
        "format": "lightning-rebasin-snapshots",
        "version": 1,
        "snapshots": [entry],
    }
    (tmp_path / "index.json").write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match="unexpected file name"):
        read_index(tmp_path)
