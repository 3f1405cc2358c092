"""The main job on embedded data, and the data readers it stands on."""

import csv
import gzip
import json
import struct

import pytest
import torch
from helpers.shared import shared_path

from lightning_rebasin.demo.data import digits, idx_folder, loader
from lightning_rebasin.demo.model import Classifier
from lightning_rebasin.demo.run import DemoSettings, evaluate_merged, run_demo
from lightning_rebasin.errors import ConfigurationError, DataError, OutputError


def write_idx(path, array):
    header = struct.pack(
        f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape
    )
    path.write_bytes(header + array.numpy().tobytes())


@pytest.fixture
def idx(tmp_path):
    """A tiny MNIST-like folder, one file gzipped, the others plain."""
    generator = torch.Generator().manual_seed(0)
    for stem, n in (("train", 60), ("t10k", 20)):
        images = torch.randint(
            0, 256, (n, 4, 4), generator=generator, dtype=torch.uint8
        )
        write_idx(tmp_path / f"{stem}-images-idx3-ubyte", images)
        write_idx(
            tmp_path / f"{stem}-labels-idx1-ubyte",
            torch.arange(n, dtype=torch.uint8) % 10,
        )
    plain = tmp_path / "t10k-labels-idx1-ubyte"
    plain.with_suffix(".gz").write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    return tmp_path


def test_digits_are_split_once_for_all():
    data = digits()
    assert (len(data.train), len(data.test), data.features, data.classes) == (
        1438,
        359,
        64,
        10,
    )
    assert float(data.train.tensors[0].max()) == 1.0
    assert torch.equal(data.test.tensors[1], digits().test.tensors[1])


def test_idx_files_plain_and_gzipped(idx):
    data = idx_folder(idx)
    assert (len(data.train), len(data.test), data.features, data.classes) == (
        60,
        20,
        16,
        10,
    )
    assert data.test.tensors[1].tolist() == [i % 10 for i in range(20)]


def test_a_missing_file_is_named(idx):
    (idx / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match="train-labels-idx1-ubyte"):
        idx_folder(idx)


@pytest.mark.parametrize(
    "content", [b"", b"hello", bytes((0, 0, 8, 1)) + b"\0\0\0\x09" + b"\1"]
)
def test_a_malformed_file_is_named(idx, content):
    (idx / "train-labels-idx1-ubyte").write_bytes(content)
    with pytest.raises(
        DataError, match="train-labels-idx1-ubyte is not an idx file"
    ):
        idx_folder(idx)


def test_unequal_counts_are_refused(idx):
    write_idx(
        idx / "train-labels-idx1-ubyte", torch.zeros(7, dtype=torch.uint8)
    )
    with pytest.raises(DataError, match="60 images but 7 labels"):
        idx_folder(idx)


def test_the_loader_shuffles_by_its_seed():
    data = digits().train
    first = [batch[1].tolist() for batch in loader(data, 100, seed=1)]
    assert first == [batch[1].tolist() for batch in loader(data, 100, seed=1)]
    assert first != [batch[1].tolist() for batch in loader(data, 100, seed=2)]
    assert [len(b) for b in first] == [100] * 14 + [38]


@pytest.mark.parametrize("bad", [{"epochs": 0}, {"width": -1}, {"seed": -1}])
def test_settings_are_checked(tmp_path, bad):
    with pytest.raises(ConfigurationError, match=f"--{next(iter(bad))}"):
        DemoSettings(tmp_path, **bad)


def test_an_unwritable_output_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="output folder"):
        run_demo(
            DemoSettings(tmp_path / "file" / "out", epochs=1), progress=False
        )


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    settings = DemoSettings(tmp_path_factory.mktemp("demo"))
    return settings, run_demo(settings, progress=False)


def test_the_naive_midpoint_is_broken_and_the_merged_one_is_not(demo):
    _, report = demo
    rows = {row.name: row for row in report.rows}
    ends = (rows["first (λ = 0)"].accuracy, rows["second (λ = 1)"].accuracy)
    assert min(ends) > 0.96
    assert rows["naive midpoint"].accuracy < min(ends) - 0.05
    assert rows["merged midpoint"].accuracy > max(ends) - 0.02
    assert report.naive_barrier > 0.5
    assert report.matched_barrier < 0.1 * report.naive_barrier
    assert report.equivalence_error < 1e-8


def test_everything_is_written(demo):
    settings, report = demo
    assert (
        json.loads((settings.output / "report.json").read_text())[
            "naive_barrier"
        ]
        == report.naive_barrier
    )
    with (settings.output / "barrier.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 25
    assert float(lines[12]["naive_val_loss"]) == pytest.approx(
        report.rows[2].loss, rel=1e-6
    )
    assert (
        (settings.output / "barrier.png").read_bytes().startswith(b"\x89PNG")
    )
    assert list((settings.output / "snapshots").iterdir())


def test_the_merged_file_is_a_normal_lightning_checkpoint(demo):
    settings, report = demo
    tested = evaluate_merged(settings)
    assert tested["test_loss"] == pytest.approx(report.rows[3].loss, rel=1e-5)
    assert tested["test_accuracy"] == pytest.approx(
        report.rows[3].accuracy, abs=1e-6
    )
    payload = torch.load(settings.output / "merged.ckpt", weights_only=True)
    assert payload["hyper_parameters"]["width"] == 256
    assert isinstance(
        Classifier.load_from_checkpoint(settings.output / "merged.ckpt"),
        Classifier,
    )


def test_the_same_seed_gives_the_same_result(tmp_path):
    reports = [
        run_demo(
            DemoSettings(tmp_path / name, epochs=2, width=16, seed=3),
            progress=False,
        )
        for name in ("a", "b")
    ]
    assert reports[0].rows == reports[1].rows
    assert reports[0].objective == reports[1].objective


def test_idx_files_run_too(idx, tmp_path):
    report = run_demo(
        DemoSettings(tmp_path / "out", data_dir=idx, epochs=1, width=8),
        progress=False,
    )
    assert len(report.rows) == 4


@pytest.mark.slow
def test_mnist_reproduces_the_published_barrier(tmp_path):
    settings = DemoSettings(tmp_path, data_dir=shared_path("data/mnist"))
    report = run_demo(settings, progress=False)
    assert report.naive_barrier > 0.5
    assert report.matched_barrier <= 0.01
