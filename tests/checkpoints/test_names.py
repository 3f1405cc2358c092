import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.checkpoint_files import same
from helpers.models import BatchNormCNN
from torch import Tensor, nn

from lightning_rebasin.checkpoints import read_checkpoint
from lightning_rebasin.errors import CheckpointError


def test_prefixes(tmp_path: Path, state: dict[str, Tensor]) -> None:
    def save(names: dict[str, str]) -> None:
        renamed = {new: state[old] for new, old in names.items()}
        torch.save(renamed, tmp_path / "a.pt")

    save({f"module.{n}": n for n in state})
    assert same(read_checkpoint(tmp_path / "a.pt").state_dict, state)
    assert list(read_checkpoint(tmp_path / "a.pt", prefix="").state_dict) == [
        f"module.{n}" for n in state
    ]
    save({f"model._orig_mod.{n}": n for n in state})
    assert list(read_checkpoint(tmp_path / "a.pt").state_dict) == [
        f"model.{n}" for n in state
    ]
    assert same(
        read_checkpoint(
            tmp_path / "a.pt", prefix="model._orig_mod."
        ).state_dict,
        state,
    )
    mapped = read_checkpoint(
        tmp_path / "a.pt",
        prefix={"model._orig_mod.0": "first", "model._orig_mod.": "rest."},
    )
    assert list(mapped.state_dict) == [
        "first.weight",
        "first.bias",
        "rest.2.weight",
        "rest.2.bias",
    ]
    assert mapped.names["first.bias"] == "model._orig_mod.0.bias"
    with pytest.raises(
        CheckpointError,
        match=r"'model._orig_mod.0.weight' does not begin with the prefix 'net.'",
    ):
        read_checkpoint(tmp_path / "a.pt", prefix="net.")
    with pytest.raises(CheckpointError, match="would both be called 'x'"):
        read_checkpoint(
            tmp_path / "a.pt",
            prefix={f"model._orig_mod.{n}": "x" for n in state},
        )


def test_a_lightning_module_may_call_its_child_module(
    tmp_path: Path, state: dict[str, Tensor]
) -> None:
    names = {f"module.{n}": t for n, t in state.items()}
    torch.save(
        {"pytorch-lightning_version": "2.6.6", "state_dict": names},
        tmp_path / "a.ckpt",
    )
    assert list(read_checkpoint(tmp_path / "a.ckpt").state_dict) == list(names)


class Foreign(nn.Module):
    """Unknown to the restricted reader, with everything a module can have."""

    def __init__(self) -> None:
        super().__init__()
        self.body = BatchNormCNN(2)
        self.scale = nn.Parameter(torch.ones(2))
        self.register_buffer("scratch", torch.zeros(1), persistent=False)
        self.hook = self.body.fc.forward

    def __reduce_ex__(self, protocol: Any) -> Any:
        return super().__reduce_ex__(protocol)


@pytest.mark.parametrize("zipped", [True, False])
def test_whole_modules_give_their_state_dict(
    tmp_path: Path, zipped: bool
) -> None:
    module = Foreign()
    del module.hook
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(
            {"net": module, "epoch": 1},
            tmp_path / "a.pt",
            _use_new_zipfile_serialization=zipped,
        )
        torch.save(
            module, tmp_path / "b.pt", _use_new_zipfile_serialization=zipped
        )
    assert same(
        dict(sorted(read_checkpoint(tmp_path / "a.pt").state_dict.items())),
        dict(sorted(module.state_dict().items())),
    )
    assert len(read_checkpoint(tmp_path / "b.pt").state_dict) == len(
        module.state_dict()
    )


def test_files_that_hold_no_weights(tmp_path: Path) -> None:
    cases: tuple[tuple[object, str], ...] = (
        ({"epoch": 3}, "no tensors"),
        ([1, 2], "a list, not a dict"),
        ({}, "none"),
        (7, "a int, not a dict"),
    )
    for payload, message in cases:
        torch.save(payload, tmp_path / "a.pt")
        with pytest.raises(CheckpointError, match=message):
            read_checkpoint(tmp_path / "a.pt")
