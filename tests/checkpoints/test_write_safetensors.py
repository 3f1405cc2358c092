"""What is written tensor by tensor is read by the format's own library."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lightning_rebasin.checkpoints.lazy import LazyTensors
from lightning_rebasin.checkpoints.write_safetensors import (
    NAMES,
    write_safetensors,
)
from lightning_rebasin.errors import CheckpointError


@pytest.mark.parametrize("dtype", NAMES, ids=str)
def test_every_dtype_comes_back_bit_for_bit(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)
    raw = torch.randint(0, 2, (3, 4), generator=generator)
    state = {"x": raw.to(dtype), "scalar": torch.tensor(1).to(dtype)}
    state["empty"] = torch.empty(0, 3, dtype=dtype)
    write_safetensors(tmp_path / "a.safetensors", state, {"format": "pt"})
    back = load_file(tmp_path / "a.safetensors")
    assert set(back) == set(state)
    for name, tensor in state.items():
        assert back[name].dtype == dtype and back[name].shape == tensor.shape
        same = back[name].reshape(-1).view(torch.uint8)
        assert torch.equal(same, tensor.reshape(-1).view(torch.uint8))


def test_the_same_header_as_the_library_writes(tmp_path: Path) -> None:
    state = {
        "b.weight": torch.randn(3, 2),
        "a.weight": torch.randn(2).bfloat16(),
        "steps": torch.tensor(7),
        "mask": torch.tensor([True, False, True]),
    }
    write_safetensors(tmp_path / "own.safetensors", state, {"format": "pt"})
    save_file(state, tmp_path / "theirs.safetensors", {"format": "pt"})
    own, theirs = (
        (tmp_path / f"{name}.safetensors").read_bytes()
        for name in ("own", "theirs")
    )
    headers = []
    for content in (own, theirs):
        size = int.from_bytes(content[:8], "little")
        assert size % 8 == 0
        headers.append(json.loads(content[8 : 8 + size]))
    assert headers[0] == headers[1]
    assert own[-50:] == theirs[-50:]


def test_views_and_shared_memory(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    state = {"all": whole, "turned": whole.T, "part": whole[1:, ::2]}
    write_safetensors(tmp_path / "a.safetensors", state, {})
    back = load_file(tmp_path / "a.safetensors")
    for name, tensor in state.items():
        assert torch.equal(back[name], tensor)


def test_one_tensor_at_a_time(tmp_path: Path) -> None:
    made: list[str] = []

    def make(name: str) -> torch.Tensor:
        made.append(name)
        return torch.ones(2)

    plan = {name: torch.empty(2, device="meta") for name in "cab"}
    write_safetensors(
        tmp_path / "a.safetensors", LazyTensors(plan, make), {"note": "ä"}
    )
    assert made == ["a", "b", "c"]
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata() == {"note": "ä"}


def test_what_the_format_does_not_know(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with pytest.raises(CheckpointError, match=r"'z'.*complex128.*\.pt"):
        write_safetensors(
            path, {"z": torch.ones(2, dtype=torch.complex128)}, {}
        )
    with pytest.raises(CheckpointError, match=r"'s'.*sparse"):
        write_safetensors(path, {"s": torch.eye(2).to_sparse()}, {})
    assert not path.exists()
    wrong = LazyTensors(
        {"x": torch.empty(3, device="meta")}, lambda _: torch.ones(2)
    )
    with pytest.raises(CheckpointError, match="but the header"):
        write_safetensors(path, wrong, {})
