"""The ``apply`` command moves the units of one checkpoint, there and back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.classifier import Classifier
from helpers.commands import MODULE, Files, one_line, run
from torch import Tensor

from lightning_rebasin.symmetry import Permutation, infer_spec

Capture = pytest.CaptureFixture[str]
NETWORK = f"--module {MODULE} --input-shape 4,6"


def test_match_apply_and_back(files: Files, capsys: Capture) -> None:
    assert run("match a.ckpt b.ckpt -o p.perm --no-progress", NETWORK) == 0
    assert "same function" in capsys.readouterr().out
    assert run("apply p.perm b.ckpt -o c.ckpt", NETWORK) == 0
    assert "relative error" in capsys.readouterr().out
    got = torch.load("c.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(got[n], t) for n, t in files.state.items())
    assert run("apply p.perm c.ckpt -o d.ckpt --inverse") == 0
    back = torch.load("d.ckpt", weights_only=True)["state_dict"]
    b = torch.load("b.ckpt", weights_only=False)["state_dict"]
    assert all(torch.equal(back[n], t) for n, t in b.items())
    assert run("apply p.perm b.ckpt -o e.ckpt --permute-optimizer") == 2
    assert "no optimizer state" in capsys.readouterr().err


@pytest.fixture
def reversal(files: Files) -> str:
    """A permutation file that turns the hidden units round."""
    spec = infer_spec(Classifier(hidden=6, batch_norm=True))
    Permutation(spec, {"net.fc1": torch.arange(5, -1, -1)}).save("turn.perm")
    return "turn.perm"


def turned(name: str, tensor: Tensor) -> Tensor:
    """What the reversal must do to a tensor of the network."""
    if name == "net.fc2.weight":
        return tensor.flip(1)
    if name == "net.fc2.bias" or tensor.ndim == 0:
        return tensor
    return tensor.flip(0)


def test_units_move_and_nothing_else_does(
    files: Files, reversal: str, capsys: Capture
) -> None:
    assert run(f"apply {reversal} a.ckpt -o out.ckpt") == 0
    assert "(not checked: no --module)" in capsys.readouterr().out
    got = torch.load("out.ckpt", weights_only=True)["state_dict"]
    assert list(got) == list(files.state)
    for name, tensor in files.state.items():
        assert torch.equal(got[name], turned(name, tensor)), name


def test_a_checkpoint_of_another_width_is_refused(
    files: Files, reversal: str, tmp_path: Path, capsys: Capture
) -> None:
    torch.save(Classifier(hidden=7, batch_norm=True).state_dict(), "wide.pt")
    assert run(f"apply {reversal} wide.pt -o out.ckpt") == 2
    line = one_line(capsys)
    assert "net.fc1.weight" in line
    assert "(7, 6)" in line
    assert not (tmp_path / "out.ckpt").exists()


def test_an_existing_file_is_kept(
    files: Files, reversal: str, tmp_path: Path, capsys: Capture
) -> None:
    before = (tmp_path / "b.ckpt").read_bytes()
    assert run(f"apply {reversal} a.ckpt -o b.ckpt") == 2
    assert "--force" in one_line(capsys)
    assert (tmp_path / "b.ckpt").read_bytes() == before
    assert run(f"apply {reversal} a.ckpt -o b.ckpt --force") == 0
    assert (tmp_path / "b.ckpt").read_bytes() != before


def test_names_behind_a_prefix_are_found_and_kept(
    files: Files, reversal: str
) -> None:
    wrapped = {f"wrapped.{name}": t for name, t in files.state.items()}
    torch.save(wrapped, "wrapped.pt")
    assert run(f"apply {reversal} wrapped.pt -o out.pt") == 0
    got = torch.load("out.pt", weights_only=True)
    assert list(got) == list(wrapped)
    for name, tensor in files.state.items():
        assert torch.equal(got[f"wrapped.{name}"], turned(name, tensor)), name
