"""What the stages share: files are read once, and batches are kept only where every pass has to give the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.models import mlp, randomise

from lightning_rebasin.checkpoints import inputs, job, merge_checkpoints

X = torch.randn(32, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    found = []
    for seed in range(2):
        path = tmp_path / f"{seed}.pt"
        torch.save(randomise(mlp(6, 8, 3), seed).state_dict(), path)
        found.append(path)
    return found


@pytest.mark.parametrize("heads", ["average", "concatenate"])
def test_files_are_read_once(
    paths: list[Path], monkeypatch: pytest.MonkeyPatch, heads: str
) -> None:
    read: list[Any] = []
    original = inputs.read_inputs

    def counted(*args: Any, **kwargs: Any) -> Any:
        read.append(args)
        return original(*args, **kwargs)

    monkeypatch.setattr(job, "read_inputs", counted)
    merge_checkpoints(
        paths,
        paths[0].with_name("out.pt"),
        module=mlp(6, 8, 3),
        data=list(X.split(8)),
        heads=heads,
    )
    assert len(read) == 1


class Passes:
    """Batches that count how often they are gone through."""

    def __init__(self) -> None:
        self.count = 0

    def __iter__(self) -> Iterator[torch.Tensor]:
        self.count += 1
        return iter(X.split(8))


def test_batches_are_kept_only_to_compare_ways_to_merge(
    paths: list[Path],
) -> None:
    def merged(**options: str) -> int:
        batches = Passes()
        merge_checkpoints(
            paths,
            paths[0].with_name("out.pt"),
            module=mlp(6, 8, 3),
            data=batches,
            force=True,
            **options,
        )
        return batches.count

    assert merged() == 1
    assert merged(method="weight", statistics="repair") > 1
