"""Digits and idx files: the split, the bytes, the order, and errors that name the file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.idx_files import write_idx

from lightning_rebasin.demo.data import digits, idx_folder, loader
from lightning_rebasin.errors import DataError


def test_digits_are_split_once_for_all() -> None:
    data = digits()
    assert len(data.train) == 1438
    assert len(data.test) == 359
    assert data.features == 64
    assert data.classes == 10
    assert float(data.train.tensors[0].max()) == 1.0
    assert torch.equal(data.test.tensors[1], digits().test.tensors[1])


def test_idx_files_plain_and_gzipped(idx: Path) -> None:
    data = idx_folder(idx)
    assert len(data.train) == 60
    assert len(data.test) == 20
    assert data.features == 16
    assert data.classes == 10
    assert data.test.tensors[1].tolist() == [i % 10 for i in range(20)]


def test_a_missing_file_is_named(idx: Path) -> None:
    (idx / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match="train-labels-idx1-ubyte"):
        idx_folder(idx)


@pytest.mark.parametrize(
    "content", [b"", b"hello", bytes((0, 0, 8, 1)) + b"\0\0\0\x09" + b"\1"]
)
def test_a_malformed_file_is_named(idx: Path, content: bytes) -> None:
    (idx / "train-labels-idx1-ubyte").write_bytes(content)
    message = "train-labels-idx1-ubyte is not an idx file"
    with pytest.raises(DataError, match=message):
        idx_folder(idx)


def test_unequal_counts_are_refused(idx: Path) -> None:
    labels = torch.zeros(7, dtype=torch.uint8)
    write_idx(idx / "train-labels-idx1-ubyte", labels)
    with pytest.raises(DataError, match="60 images but 7 labels"):
        idx_folder(idx)


def test_the_loader_shuffles_by_its_seed() -> None:
    data = digits().train
    first = [batch[1].tolist() for batch in loader(data, 100, seed=1)]
    assert first == [batch[1].tolist() for batch in loader(data, 100, seed=1)]
    assert first != [batch[1].tolist() for batch in loader(data, 100, seed=2)]
    assert [len(b) for b in first] == [100] * 14 + [38]
