import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.models import mlp

from lightning_rebasin.checkpoints import read_checkpoint
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
