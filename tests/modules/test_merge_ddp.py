"""MergeModule in two gloo processes: the same run as in one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.launch import launch


@pytest.mark.timeout(600)
@pytest.mark.skipif(
    not torch.distributed.is_available(),
    reason="torch was built without distributed",
)
def test_two_ranks_equal_one_process(tmp_path: Path) -> None:
    launch("merge_ddp", tmp_path, 2, 8)
    launch("merge_ddp", tmp_path, 1, 16)
    one, first, second = (
        torch.load(tmp_path / f"{name}.pt", weights_only=True)
        for name in ("1-0", "2-0", "2-1")
    )
    for group, order in first["orders"].items():
        assert torch.equal(order, second["orders"][group])
        assert torch.equal(order, one["orders"][group])
    assert (
        first["best"] == second["best"] == pytest.approx(one["best"], rel=1e-5)
    )
    for mine, theirs, alone in zip(
        first["free"], second["free"], one["free"], strict=True
    ):
        assert torch.equal(mine, theirs)
        # DistributedSampler deals samples out in turn, so each pair of half batches is one whole batch.
        torch.testing.assert_close(mine, alone, rtol=1e-4, atol=1e-5)
