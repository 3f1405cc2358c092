"""Batches: copied, moved, counted, and every sample once."""

from __future__ import annotations

import pytest
import torch
from helpers.classifier import blobs
from torch.utils.data import DataLoader, DistributedSampler

from lightning_rebasin.errors import DataError
from lightning_rebasin.landscape.batches import (
    batch_size,
    clone_batch,
    on_device,
    without_repeats,
)


def test_batches_are_copied_with_their_containers():
    batch = {"x": torch.zeros(2), "more": [torch.ones(1), "text"]}
    copy = clone_batch(batch)
    copy["x"].add_(1)
    copy["more"].clear()
    assert float(batch["x"].sum()) == 0
    assert len(batch["more"]) == 2


def test_samples_are_counted_or_the_type_is_named():
    assert batch_size({"x": torch.zeros(3, 2), "y": torch.zeros(3)}) == 3
    with pytest.raises(DataError, match="batch of type object"):
        batch_size(object())


def test_a_batch_moves_with_its_containers_and_what_is_there_stays():
    x = torch.zeros(2)
    assert on_device({"x": x}, torch.device("cpu"))["x"] is x
    moved = on_device([x, "text"], torch.device("meta"))
    assert moved[0].device.type == "meta"
    assert moved[1] == "text"


@pytest.mark.parametrize("samples", range(1, 14))
@pytest.mark.parametrize("processes", [1, 2, 3, 4])
def test_every_sample_is_counted_once(samples, processes):
    data = list(range(samples))
    seen = []
    for rank in range(processes):
        sampler = DistributedSampler(data, processes, rank, shuffle=False)
        loader = DataLoader(data, batch_size=3, sampler=sampler)
        for index, batch in enumerate(loader):
            kept = without_repeats(batch, index, loader)
            seen += [] if kept is None else kept.tolist()
    if samples >= processes:
        assert sorted(seen) == data
    else:  # more processes than samples: each process still has at most one repeated sample
        assert set(seen) == set(data)


def test_other_loaders_are_left_alone():
    data = blobs(5, 0)
    for loader in (DataLoader(data, batch_size=2), [1, 2], None):
        batch = [torch.zeros(2, 3), torch.zeros(2)]
        assert without_repeats(batch, 0, loader) is batch
