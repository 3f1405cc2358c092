"""One process of several that refit a network together; run by tests/merging/refit/test_processes.py.

python refit_ddp.py OUT PROCESSES RANK
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import torch
from torch import Tensor, distributed

from helpers.leave import leave
from helpers.models import BatchNormCNN, randomise
from lightning_rebasin import refit


def batches() -> list[Tensor]:
    """Images with more positions than are looked at, so that some are drawn."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(256, 3, 16, 16, generator=generator)
    return list(images.split(64))


def add(tensor: Tensor) -> Tensor:
    distributed.all_reduce(tensor)
    return tensor


def run(out: Path, processes: int, rank: int) -> None:
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{out}/meeting-{processes}",
        rank=rank,
        world_size=processes,
    )
    ends = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        ends.append(randomise(BatchNormCNN(), seed).state_dict())
    mine = batches()[rank::processes]
    found = refit(BatchNormCNN(), ends, mine, total=add)
    kept = {
        "state": found.module.state_dict(),
        "method": found.method,
        "scores": dict(found.scores),
        "ridges": [layer.ridge for layer in found.layers],
        "samples": found.samples,
    }
    torch.save(kept, out / f"{processes}-{rank}.pt")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    run(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    leave()
