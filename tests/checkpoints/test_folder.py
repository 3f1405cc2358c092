"""Model folders: where their weights are, and damaged ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lightning_rebasin.checkpoints import read_checkpoint
from lightning_rebasin.checkpoints.folder import (
    find_model_folder,
    weight_files,
)
from lightning_rebasin.errors import CheckpointError

State = dict[str, Tensor]
FIRST, SECOND = "pytorch_model-00001.bin", "pytorch_model-00002.bin"
INDEX = "pytorch_model.bin.index.json"


@pytest.fixture
def folder(tmp_path: Path, state: State) -> Path:
    """A folder of two files of ``torch.save`` with an index, a configuration and a tokenizer."""
    model = tmp_path / "model"
    model.mkdir()
    names = list(state)
    place = {n: FIRST if i % 2 else SECOND for i, n in enumerate(names)}
    for file in (FIRST, SECOND):
        torch.save(
            {n: state[n] for n in names if place[n] == file}, model / file
        )
    write_index(model, place)
    (model / "config.json").write_text('{"model_type": "toy"}')
    (model / "tokenizer.json").write_text("{}")
    (model / "README.md").write_text("a card of the first training")
    return model


def write_index(folder: Path, place: object) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": place}))


def index_of(folder: Path) -> dict[str, str]:
    place: dict[str, str] = json.loads((folder / INDEX).read_text())[
        "weight_map"
    ]
    return place


def test_all_files_of_a_folder_are_read(folder: Path, state: State) -> None:
    found = read_checkpoint(folder)
    assert found.format == "folder"
    assert found.metadata == {"config": {"model_type": "toy"}}
    assert set(found.state_dict) == set(state)
    for name, tensor in state.items():
        assert torch.equal(found.state_dict[name], tensor)


def test_a_whole_file_needs_no_index(tmp_path: Path, state: State) -> None:
    torch.save(state, tmp_path / "pytorch_model.bin")
    found = read_checkpoint(tmp_path)
    assert list(found.state_dict) == list(state)
    assert found.metadata == {}
    assert weight_files(tmp_path) == (tmp_path / "pytorch_model.bin",)


def test_companions_describe_the_model_not_its_training(folder: Path) -> None:
    found = find_model_folder(folder)
    assert found is not None
    assert [p.name for p in found.companions] == [
        "config.json",
        "tokenizer.json",
    ]


def test_other_folders_are_not_model_folders(tmp_path: Path) -> None:
    assert find_model_folder(tmp_path) is None
    assert find_model_folder(tmp_path / "nothing") is None
    with pytest.raises(
        CheckpointError, match=r"neither a Hugging Face one .* nor a sharded"
    ):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "name", ["../outside.bin", "/etc/passwd", "a/b.bin", "..", "", None, 3]
)
def test_an_index_must_not_point_out_of_its_folder(
    folder: Path, name: object
) -> None:
    (folder.parent / "outside.bin").write_bytes(b"secret")
    write_index(folder, index_of(folder) | {"0.weight": name})
    with pytest.raises(
        CheckpointError, match="not the name of a file beside it"
    ):
        read_checkpoint(folder)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "3",
        "{}",
        '{"weight_map": {}}',
        '{"weight_map": 3}',
        "[" * 100_000,
    ],
)
def test_a_damaged_index(folder: Path, text: str) -> None:
    (folder / INDEX).write_text(text)
    with pytest.raises(CheckpointError, match=r"index\.json (has no|is not)"):
        read_checkpoint(folder)


def test_an_index_that_is_not_text(folder: Path) -> None:
    (folder / INDEX).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CheckpointError, match="not valid JSON"):
        read_checkpoint(folder)


def test_a_missing_file(folder: Path) -> None:
    (folder / SECOND).unlink()
    with pytest.raises(
        CheckpointError, match=rf"{SECOND}, which is not there"
    ):
        read_checkpoint(folder)


def test_a_truncated_file(folder: Path) -> None:
    content = (folder / FIRST).read_bytes()
    (folder / FIRST).write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=FIRST):
        read_checkpoint(folder)


def test_a_file_without_a_promised_tensor(folder: Path) -> None:
    write_index(folder, index_of(folder) | {"more": FIRST})
    with pytest.raises(
        CheckpointError, match=f"{FIRST} lacks the tensor 'more'"
    ):
        read_checkpoint(folder)


def test_a_tensor_in_two_files(folder: Path, state: State) -> None:
    torch.save(state, folder / SECOND)
    with pytest.raises(CheckpointError, match="a second time"):
        read_checkpoint(folder)


def test_a_damaged_configuration(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    with pytest.raises(
        CheckpointError, match=r"config\.json is not valid JSON"
    ):
        read_checkpoint(folder)
