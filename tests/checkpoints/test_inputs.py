from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.checkpoint_files import Planted, X, batch_norm_files, loaded
from torch import Tensor

from lightning_rebasin.checkpoints import merge_checkpoints
from lightning_rebasin.errors import (
    CheckpointError,
    NonFiniteError,
    StateDictError,
)

State = dict[str, Tensor]


def test_prefixes_are_fitted_to_the_module_and_kept_in_the_output(
    tmp_path: Path, planted: Planted
) -> None:
    net, _, _ = planted
    for name in ("a", "b"):
        state = loaded(tmp_path / f"{name}.pt")
        payload = {
            "pytorch-lightning_version": "2.6.6",
            "state_dict": {f"model.{n}": t for n, t in state.items()},
        }
        torch.save(payload, tmp_path / f"{name}.ckpt")
    merge_checkpoints(
        [tmp_path / "a.ckpt", tmp_path / "b.pt"],
        tmp_path / "out.ckpt",
        module=net,
        example=X,
    )
    got = loaded(tmp_path / "out.ckpt")["state_dict"]
    torch.testing.assert_close(
        got["model.0.weight"], net.state_dict()["0.weight"]
    )
    assert all(name.startswith("model.") for name in got)


def test_files_from_before_batch_counters(tmp_path: Path) -> None:
    net, data, paths = batch_norm_files(tmp_path)
    old = {n: t for n, t in loaded(paths[0]).items() if "num_batches" not in n}
    torch.save(old, paths[0])
    merge_checkpoints(paths, tmp_path / "out.pt", module=net, data=data)
    assert list(loaded(tmp_path / "out.pt")) == list(old)
    merge_checkpoints(paths[::-1], tmp_path / "out2.pt", module=net, data=data)
    assert "bn1.num_batches_tracked" in loaded(tmp_path / "out2.pt")
    merge_checkpoints(paths, tmp_path / "out3.pt", method="average")
    net.load_state_dict(loaded(tmp_path / "out3.pt"))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            lambda s: {**s, "0.weight": torch.zeros(13, 6)},
            StateDictError,
            r"b\.pt.*'0.weight'",
        ),
        (
            lambda s: {n: t for n, t in s.items() if n != "2.bias"},
            StateDictError,
            r"b\.pt.*lacks '2.bias'",
        ),
        (
            lambda s: {**s, "extra": torch.zeros(1)},
            StateDictError,
            r"b\.pt.*unexpected 'extra'",
        ),
        (
            lambda s: {**s, "0.bias": torch.full((12,), float("nan"))},
            NonFiniteError,
            r"b\.pt.*'0.bias'",
        ),
        (
            lambda s: {**s, "0.bias": torch.zeros(12, dtype=torch.long)},
            StateDictError,
            r"b\.pt.*'0.bias'",
        ),
        (lambda s: {"epoch": 3}, CheckpointError, r"b\.pt.*no tensors"),
    ],
)
def test_inputs_that_do_not_fit_are_named_and_nothing_is_written(
    tmp_path: Path,
    planted: Planted,
    change: Callable[[State], dict[str, Any]],
    error: type[Exception],
    message: str,
) -> None:
    torch.save(change(loaded(tmp_path / "b.pt")), tmp_path / "b.pt")
    with pytest.raises(error, match=message):
        merge_checkpoints(
            [tmp_path / "a.pt", tmp_path / "b.pt"],
            tmp_path / "o.pt",
            module=planted[0],
            example=X,
        )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.pt", "b.pt"]
