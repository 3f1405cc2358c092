import io
import pickle
import random
import tarfile
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.models import mlp

from lightning_rebasin.checkpoints import guard, read_checkpoint
from lightning_rebasin.checkpoints.guard import check_container, check_tensors
from lightning_rebasin.checkpoints.unpickle import MAX_DEPTH
from lightning_rebasin.errors import CheckpointError


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"PK\x03\x04" + b"\0" * 100, "truncated or damaged zip"),
        (b"hello, I am text", "not a file written by torch.save"),
        (
            b"\x89HDF\r\n\x1a\n" + b"\0" * 100,
            "not a file written by torch.save",
        ),
        (pickle.dumps({"a": 1}), "cannot be read|truncated or damaged"),
        (b"\x80\x02]q\x00.", "cannot be read|truncated or damaged"),
    ],
)
def test_foreign_files(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.ckpt").write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_checkpoint(tmp_path / "a.ckpt")
    assert "a.ckpt" in str(caught.value)


def test_torchscript_is_refused_with_advice(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        script: Any = torch.jit
        traced = script.trace(mlp(3, 4, 2), torch.zeros(1, 3))
        script.save(traced, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"TorchScript.*state dict"):
        read_checkpoint(tmp_path / "a.pt")


def depth(value: object) -> int:
    """Brute force: how many containers are around the innermost thing."""
    inside: list[object] = []
    if isinstance(value, dict):
        inside = [*value.keys(), *value.values()]
    elif isinstance(value, list | tuple):
        inside = [*value]
    return max((1 + depth(item) for item in inside), default=0)


def grown(rng: random.Random, room: int) -> object:
    """A random nest of lists, tuples and dicts."""
    if room == 0 or rng.random() < 0.2:
        return rng.choice([1, 2.5, "x", None, True])
    items = [grown(rng, room - 1) for _ in range(rng.randrange(4))]
    kind = rng.choice([list, tuple, dict])
    return dict(enumerate(items)) if kind is dict else kind(items)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_the_depth_of_a_pickle_is_that_of_what_it_makes(protocol: int) -> None:
    rng = random.Random(protocol)
    for _ in range(100):
        value = grown(rng, 6)
        raw = io.BytesIO(pickle.dumps(value, protocol))
        assert guard._depth(Path("a.pt"), raw) == depth(value)


@pytest.mark.parametrize("protocol", [0, 2])
def test_long_containers_are_not_deep(protocol: int) -> None:
    """Pickle adds a thousand items at a time."""
    for value in ([0] * 2500, dict.fromkeys(range(2500))):
        raw = io.BytesIO(pickle.dumps(value, protocol))
        assert guard._depth(Path("a.pt"), raw) == 1


def nested(levels: int) -> object:
    value: object = 1
    for _ in range(levels):
        value = (value,)
    return value


def test_nesting_is_refused_beyond_the_deepest_that_is_allowed(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.pt"
    torch.save(nested(MAX_DEPTH), path)
    assert check_container(path) == "zip"
    torch.save(nested(MAX_DEPTH + 1), path)
    with pytest.raises(CheckpointError, match=rf"more than {MAX_DEPTH} deep"):
        check_container(path)


def test_each_container_is_known_by_its_content(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    torch.save({"w": torch.ones(2)}, path)
    assert check_container(path) == "zip"
    torch.save({"w": 1}, path, _use_new_zipfile_serialization=False)
    assert check_container(path) == "pickle"
    with tarfile.open(path, "w:") as tar:
        for name in ("storages", "tensors", "pickle"):
            tar.addfile(tarfile.TarInfo(name))
    assert check_container(path) == "tar"


def test_archives_that_torch_did_not_write_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("folder/readme.txt", "hello")
    with pytest.raises(CheckpointError, match="zip archive, but not one"):
        check_container(path)
    with tarfile.open(path, "w:") as tar:
        tar.addfile(tarfile.TarInfo("readme.txt"))
    with pytest.raises(CheckpointError, match="tar archive, but not one"):
        check_container(path)


def test_a_view_may_not_claim_more_than_its_file_could_hold(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(bytes(100))
    one = torch.zeros(1, dtype=torch.float64)
    # Small files may claim 64 MiB: eight million numbers of eight bytes.
    check_tensors(path, {"w": one.expand(2**23)})
    with pytest.raises(CheckpointError, match=r"a\.pt.*'w' claims 8,388,609"):
        check_tensors(path, {"w": one.expand(2**23 + 1)})
    path.write_bytes(bytes(8 * 2**20))
    check_tensors(path, {"w": one.expand(2**23 + 1)})
