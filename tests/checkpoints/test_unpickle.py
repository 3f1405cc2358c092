from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from helpers.checkpoint_files import same
from helpers.shared import shared_path
from torch import Tensor, nn

from lightning_rebasin.checkpoints import read_checkpoint


def test_hyper_parameters_of_refused_files_are_kept() -> None:
    c = read_checkpoint(
        shared_path("data/lightning/v2.6.0-loss-object-in-hparams.ckpt")
    )
    kept = c.metadata["hyper_parameters"]
    assert (kept["hidden_channels"], kept["padding"], kept["lr"]) == (
        16,
        "same",
        0.001,
    )
    assert repr(kept["optimizer"]) == "<stand-in for torch.optim.adam.Adam>"
    assert (
        repr(kept["criterion"])
        == "<stand-in for torch.nn.modules.loss.BCEWithLogitsLoss>"
    )


def test_stand_ins_for_containers_paths_and_numbers(
    tmp_path: Path, state: dict[str, Tensor]
) -> None:
    np = pytest.importorskip("numpy")
    import argparse
    import functools

    payload = {
        "state_dict": OrderedDict(state),
        "args": argparse.Namespace(lr=0.1, inner=argparse.Namespace(depth=3)),
        "where": Path("a/b"),
        "best": np.float64(0.25),
        "count": np.int32(-7),
        "array": np.zeros(3),
        "callable": functools.partial(print, "x"),
        "seen": {1, 2},
        "dtype": torch.bfloat16,
    }
    torch.save(payload, tmp_path / "a.pt")
    meta = read_checkpoint(tmp_path / "a.pt").metadata
    assert meta["args"] == {"lr": 0.1, "inner": {"depth": 3}}
    assert (meta["where"], meta["best"], meta["count"]) == ("a/b", 0.25, -7)
    assert (meta["seen"], meta["dtype"]) == ({1, 2}, torch.bfloat16)
    assert repr(meta["callable"]) == "<stand-in for functools.partial>"


@pytest.mark.parametrize("zipped", [True, False])
def test_restricted_reading_gives_the_same_tensors(
    tmp_path: Path, zipped: bool
) -> None:
    shared = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    tensors = {
        "view": shared[1:, ::2],
        "transposed": shared.T,
        "half": shared.half(),
        "bf16": shared.bfloat16(),
        "int8": shared.to(torch.int8),
        "complex": torch.view_as_complex(torch.randn(3, 2)),
        "scalar": torch.tensor(4),
        "parameter": nn.Parameter(shared.clone()),
        "empty": torch.zeros(0, 3),
    }
    payload = {"state_dict": tensors, "why_refused": print}
    torch.save(
        payload, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped
    )
    got = read_checkpoint(tmp_path / "a.pt").state_dict
    assert same(got, tensors)
    assert all(
        got[n].dtype == t.dtype and type(got[n]) is torch.Tensor
        for n, t in tensors.items()
    )
