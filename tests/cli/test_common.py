"""Options that several commands share: names of tensors, stored hyper-parameters, import paths."""

from __future__ import annotations

import torch
from helpers.commands import Files, run


def test_prefix_option(files: Files) -> None:
    torch.save({f"wrapped.{n}": t for n, t in files.state.items()}, "w.pt")
    merge = "merge w.pt w.pt -o o.pt --method average --no-progress --force"
    assert run(merge, "--prefix wrapped.") == 0
    assert run(merge, "--prefix wrapped.net=net --prefix wrapped.=x.") == 0
    assert list(torch.load("o.pt", weights_only=True)) == [
        f"wrapped.{n}" for n in files.state
    ]
