"""The ``apply`` command moves the units of one checkpoint, there and back."""

from __future__ import annotations

import pytest
import torch
from helpers.commands import MODULE, Files, run

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
