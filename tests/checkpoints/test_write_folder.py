"""Folders are written whole, in the layout of another one, or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lightning_rebasin.checkpoints import read_checkpoint, write_checkpoint
from lightning_rebasin.checkpoints import write_folder as room
from lightning_rebasin.errors import OutputError

State = dict[str, Tensor]


@pytest.fixture
def model(tmp_path: Path, state: State) -> Path:
    """A folder of one safetensors file per tensor."""
    from safetensors.torch import save_file

    folder = tmp_path / "model"
    folder.mkdir()
    place = {}
    for number, (name, tensor) in enumerate(state.items()):
        place[name] = f"model-{number}.safetensors"
        save_file({name: tensor}, folder / place[name])
    index = {"weight_map": place}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text('{"model_type": "toy"}')
    return folder


def test_the_same_files_with_other_weights(
    tmp_path: Path, model: Path
) -> None:
    like = read_checkpoint(model)
    doubled = {n: 2 * t for n, t in like.state_dict.items()}
    write_checkpoint(tmp_path / "out", doubled, like=like, provenance={"a": 1})
    back = read_checkpoint(tmp_path / "out")
    for name, tensor in doubled.items():
        assert torch.equal(back.state_dict[name], tensor)
    names = {p.name for p in model.iterdir()} | {"lightning_rebasin.json"}
    assert {p.name for p in (tmp_path / "out").iterdir()} == names
    index = json.loads(
        (tmp_path / "out/model.safetensors.index.json").read_text()
    )
    size = sum(t.numel() * t.element_size() for t in doubled.values())
    assert index["metadata"]["total_size"] == size


def test_a_file_name_makes_a_file(tmp_path: Path, model: Path) -> None:
    like = read_checkpoint(model)
    for name in ("out.safetensors", "out.pt", "out.ckpt"):
        write_checkpoint(tmp_path / name, like.state_dict, like=like)
        assert (tmp_path / name).is_file()
        assert set(read_checkpoint(tmp_path / name).state_dict) == set(
            like.state_dict
        )


def test_an_existing_folder_is_left_alone(tmp_path: Path, model: Path) -> None:
    like = read_checkpoint(model)
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputError, match="a folder that exists already"):
        write_checkpoint(
            tmp_path / "out", like.state_dict, like=like, force=True
        )
    assert not list((tmp_path / "out").iterdir())


def test_a_failure_leaves_nothing(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    like = read_checkpoint(model)
    before = sorted(tmp_path.iterdir())

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(room.shutil, "copyfile", full)
    with pytest.raises(OutputError, match="No space left"):
        write_checkpoint(tmp_path / "out", like.state_dict, like=like)
    assert sorted(tmp_path.iterdir()) == before


def test_the_configuration_says_that_weights_are_untied(
    tmp_path: Path, model: Path
) -> None:
    """Where a part of a model has a configuration of its own, it says so as well if it said something before."""
    config = {
        "model_type": "toy",
        "text": {"tie_word_embeddings": True, "size": 3},
        "image": {"size": 4},
    }
    (model / "config.json").write_text(json.dumps(config))
    like = read_checkpoint(model)
    write_checkpoint(tmp_path / "out", like.state_dict, like=like, untied=True)
    written = json.loads((tmp_path / "out/config.json").read_text())
    assert written == {
        "model_type": "toy",
        "text": {"tie_word_embeddings": False, "size": 3},
        "image": {"size": 4},
        "tie_word_embeddings": False,
    }
    (model / "config.json").unlink()
    write_checkpoint(
        tmp_path / "bare", like.state_dict, like=like, untied=True
    )
    assert not (tmp_path / "bare/config.json").exists()
