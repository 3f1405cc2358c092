"""Several processes that add tensors up, played by threads of one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TypeVar

import torch
from torch import Tensor

from lightning_rebasin.merging.processes import Total

T = TypeVar("T")


def side_by_side(jobs: Sequence[Callable[[Total], T]]) -> list[T]:
    """Run jobs at the same time; each is given the function that adds a tensor up over all of them.

    A job that fails, or adds up less often than the others, breaks the barrier for all.
    """
    barrier = Barrier(len(jobs), timeout=60)
    board: list[Tensor] = [torch.empty(0)] * len(jobs)

    def start(rank: int) -> T:
        def total(tensor: Tensor) -> Tensor:
            board[rank] = tensor
            barrier.wait()
            found = torch.stack(board).sum(0)
            # Nobody writes the next one before everybody has read this one.
            barrier.wait()
            return found

        try:
            return jobs[rank](total)
        finally:
            if barrier.n_waiting:
                barrier.abort()

    with ThreadPoolExecutor(len(jobs)) as pool:
        return list(pool.map(start, range(len(jobs))))
