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
@pytest.mark.parametrize("kinds", ["permutation", "all"])
def test_two_ranks_equal_one_process(tmp_path: Path, kinds: str) -> None:
    launch("merge_ddp", tmp_path, 2, 8, kinds)
    launch("merge_ddp", tmp_path, 1, 16, kinds)
    one, first, second = (
        torch.load(tmp_path / f"{name}.pt", weights_only=True)
        for name in ("1-0", "2-0", "2-1")
    )
    assert len(first["elements"]) == (1 if kinds == "permutation" else 2)
    for group, element in first["elements"].items():
        assert torch.equal(element, second["elements"][group])
        torch.testing.assert_close(
            element, one["elements"][group], rtol=1e-5, atol=1e-6
        )
    assert (
        first["best"] == second["best"] == pytest.approx(one["best"], rel=1e-5)
    )
    for mine, theirs, alone in zip(
        first["learned"], second["learned"], one["learned"], strict=True
    ):
        assert torch.equal(mine, theirs)
        assert bool(mine.any())
        # DistributedSampler deals samples out in turn, so each pair of half batches is one whole batch.
        torch.testing.assert_close(mine, alone, rtol=1e-4, atol=1e-5)
