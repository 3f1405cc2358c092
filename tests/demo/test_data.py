"""Digits and idx files: the split, the bytes, the order, and errors that name the file."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import torch
from helpers.idx_files import write_idx
from sklearn.datasets import load_digits
from torch.utils.data import TensorDataset

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


def test_every_digit_is_in_one_of_the_parts() -> None:
    pixels, labels = load_digits(return_X_y=True)
    data = digits()
    images = torch.cat([data.train.tensors[0], data.test.tensors[0]])
    targets = torch.cat([data.train.tensors[1], data.test.tensors[1]])
    found = torch.cat([images * 16, targets[:, None]], 1).long()
    expected = torch.cat(
        [torch.tensor(pixels), torch.tensor(labels)[:, None]], 1
    ).long()
    assert sorted(found.tolist()) == sorted(expected.tolist())


def test_pixels_are_bytes_over_255_row_by_row(idx: Path) -> None:
    images = torch.zeros(60, 4, 4, dtype=torch.uint8)
    images[3, 1, 2] = 255
    images[3, 0, 1] = 51
    write_idx(idx / "train-images-idx3-ubyte", images)
    pixels = idx_folder(idx).train.tensors[0]
    expected = torch.zeros(60, 16)
    expected[3, 6] = 1
    expected[3, 1] = 0.2
    torch.testing.assert_close(pixels, expected, rtol=0, atol=1e-7)


def test_the_data_are_called_like_their_folder(
    idx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(idx)
    assert idx_folder(".").name == idx.name


def test_of_two_files_the_gzipped_one_is_read(idx: Path) -> None:
    plain = idx / "train-labels-idx1-ubyte"
    zipped = idx / "train-labels-idx1-ubyte.gz"
    zipped.write_bytes(gzip.compress(plain.read_bytes()))
    write_idx(plain, torch.full((60,), 9, dtype=torch.uint8))
    labels = idx_folder(idx).train.tensors[1]
    assert labels.tolist() == [i % 10 for i in range(60)]


@pytest.mark.parametrize("kept", [0, 5, 20, -1])
def test_a_gzipped_file_cut_short_is_named(idx: Path, kept: int) -> None:
    path = idx / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte\.gz"):
        idx_folder(idx)


def test_a_gzipped_file_with_other_bytes_is_named(idx: Path) -> None:
    path = idx / "t10k-labels-idx1-ubyte.gz"
    content = bytearray(path.read_bytes())
    content[10] ^= 0xFF  # the first byte after the header
    path.write_bytes(content)
    message = r"cannot read .*t10k-labels-idx1-ubyte\.gz"
    with pytest.raises(DataError, match=message):
        idx_folder(idx)


def test_a_label_file_in_place_of_the_images_is_named(idx: Path) -> None:
    labels = (idx / "train-labels-idx1-ubyte").read_bytes()
    (idx / "train-images-idx3-ubyte").write_bytes(labels)
    message = "train-images-idx3-ubyte is not an idx file of 3-dimensional"
    with pytest.raises(DataError, match=message):
        idx_folder(idx)


def test_other_numbers_than_unsigned_bytes_are_refused(idx: Path) -> None:
    path = idx / "train-labels-idx1-ubyte"
    content = bytearray(path.read_bytes())
    content[2] = 9  # signed bytes
    path.write_bytes(content)
    message = "train-labels-idx1-ubyte is not an idx file of 1-dimensional"
    with pytest.raises(DataError, match=message):
        idx_folder(idx)


def test_without_a_seed_the_order_stays() -> None:
    data = TensorDataset(torch.arange(7))
    batches = [batch[0].tolist() for batch in loader(data, 3)]
    assert batches == [[0, 1, 2], [3, 4, 5], [6]]


def test_a_shuffled_epoch_has_every_sample_once() -> None:
    data = TensorDataset(torch.arange(50))
    shuffled = loader(data, 8, seed=0)
    first, second = (
        torch.cat([batch[0] for batch in shuffled]).tolist() for _ in range(2)
    )
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second
